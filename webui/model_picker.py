"""The choice of a base model: by name from a list, or by picture from cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.assets.checkpoints import CheckpointEntry
from sdlora.errors import ModelError
from webui.app_state import AppState
from webui.download_panel import DownloadPanel
from webui.fields import WIDE
from webui.form import Form
from webui.model_cards import about_model, model_cards, model_problem
from webui.widgets import QUICK, TYPED, html

MAX_MODEL_CARDS = 60  # beyond it a search is faster than scrolling


class ModelPicker:
    """Components of the choice and their events, built where it stands."""

    def __init__(self, app_state: AppState, form: Form, place: str) -> None:
        self.app_state = app_state
        names = app_state.workspace.model_names()
        form.add("model", build=partial(gr.Dropdown, names, allow_custom_value=True))
        self.model: Component = form.fields["model"]
        self.about = html(elem_id=f"{place}-model-about")
        with gr.Accordion(
            "Choose a model by its picture", open=False, elem_id=f"{place}-models"
        ) as self.accordion:
            self.search_box = gr.Textbox(
                label="Search models", placeholder="name, family", elem_id=f"{place}-model-search"
            )
            self.cards = html(elem_id=f"{place}-model-cards")
        clicked_id = f"{place}-model-clicked"
        self.downloads = DownloadPanel(app_state, place, clicked_id)
        # the page's script puts the name on the clicked card here
        self.clicked = gr.Textbox(label="Model card", elem_classes="unseen", elem_id=clicked_id)
        self._wire()
        # the event of a card's name put into the field
        self.chosen: Any = self.clicked.change(
            lambda name: name.partition(" ")[2], [self.clicked], [self.model], **QUICK
        )

    @property
    def views(self) -> list[Component]:
        """Components that show the chosen model."""
        return [self.about]

    def _wire(self) -> None:
        self.model.change(self.describe, [self.model], [self.about], **TYPED)
        inputs = [self.search_box, self.model]
        self.search_box.change(self._cards_html, inputs, [self.cards], **TYPED)
        self.accordion.expand(self._cards_html, inputs, [self.cards], **QUICK)
        self.model.change(self._marked, inputs, [self.cards], **TYPED)

    def reload_on(self, event: Callable[..., Any]) -> None:
        """List the models anew after an `event`, such as `field.change`."""
        inputs = [self.search_box, self.model]
        event(self._listed_anew, inputs, [self.model, self.cards], **QUICK)

    def describe(self, model: str | None) -> str:
        """HTML about the model of a name."""
        return described_model(self.app_state, model)

    def opened(self, model: str | None) -> dict[Any, Any]:
        """Updates of a newly opened page: the models that are there by now."""
        return {self.about: self.describe(model)}

    def choices(self, entries: Iterable[CheckpointEntry], model: str | None) -> Any:
        """Update of the list of names, those of usable models, with `model` chosen; None leaves the
        choice. A model that cannot be used is on its card alone, with the reason."""
        names = [entry.name for entry in entries]
        return _offered(names or self.app_state.workspace.model_names(), model)

    def part_choices(
        self, entries: Sequence[CheckpointEntry], form: Form, values: Mapping[Component, Any]
    ) -> dict[Component, Any]:
        """Updates of the lists of VAEs and text encoders in `form`, of usable models and VAEs, with
        their `values` chosen."""
        with_part = {
            part: [entry.name for entry in entries if part in entry.info.parts]
            for part in ("vae", "text_encoder")
        }
        with_part["vae"] = [*self.app_state.workspace.vae_names(), *with_part["vae"]]
        fields = {form.fields[name]: names for name, names in with_part.items()}
        return {field: _offered(names, values.get(field)) for field, names in fields.items()}

    def _listed_anew(self, search: str, model: str | None) -> list[Any]:
        """Updates of the list of names and of the cards, after a model has come."""
        entries = self.app_state.usable_models()
        return [self.choices(entries, None), self._marked(search, model)]

    def _marked(self, search: str, model: str | None) -> Any:
        """Update of the cards after another choice, once they have been shown."""
        return self._cards_html(search, model) if self.app_state.models_listed else gr.skip()

    def _cards_html(self, search: str, model: str | None) -> str:
        terms = (search or "").casefold().split()
        self.app_state.models_listed = True
        entries = [
            entry for entry in self.app_state.models.list()
            if all(word in f"{entry.name} {entry.family_title}".casefold() for word in terms)
        ]  # fmt: skip
        return model_cards(entries, model or "starter", self.app_state.media, MAX_MODEL_CARDS)


def _offered(names: list[str], chosen: str | None) -> Any:
    """Update of a list of names; None leaves the choice."""
    return gr.Dropdown(names) if chosen is None else gr.Dropdown(names, value=chosen)


# Fields about the base model: other parts are offered by name, a path may be typed; their help
# needs a row of its own
PART_LOOKS: dict[str, dict[str, Any]] = {
    name: {"build": partial(gr.Dropdown, [], allow_custom_value=True), "elem_classes": [WIDE]}
    for name in ("vae", "text_encoder")
} | {
    name: {"elem_classes": [WIDE]}
    for name in ("prediction", "base_precision", "stream_blocks", "memory")
}


def described_model(app_state: AppState, model: str | None) -> str:
    """HTML about the model of a name; where there is none, near names."""
    name = (model or "").strip() or "starter"
    try:
        return about_model(app_state.models.find(name), app_state.media)
    except ModelError as error:
        try:
            app_state.workspace.checked_model(name)
        except ModelError:
            return model_problem(error.message)
        return model_problem(f"{name} is not here; it is taken from huggingface.co when used")
