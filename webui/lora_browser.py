"""The LoRA browser: searched on the server, so that ten thousand files are as fast as ten.

A first part of the cards is shown, and more on request. Completion of names uses the same list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.architectures import FAMILIES
from sdlora.lora.library.library import LoraEntry, stamp
from webui import dataset_upload, markup
from webui.app_state import AppState
from webui.lora_details import ANY_BASE, FITTING, ORDERS, LoraFilter
from webui.notice import Notice, Updates
from webui.prompt_tags import toggle_tag
from webui.widgets import QUICK, TYPED, html

PAGE_SIZE = 24  # cards
MAX_CARDS = 8 * PAGE_SIZE  # beyond it a search is faster than scrolling
UNFILTERED = 8  # so many files are shown without a search box
MAX_COMPLETIONS = 8  # names offered while one is typed
BASE_CHOICES = [("This model", FITTING), ("All", ANY_BASE)]
BASE_CHOICES += [(base.title, name) for name, base in FAMILIES.items()]


class LoraBrowser:
    """Components of the browser, built where it stands, and their events."""

    def __init__(self) -> None:
        html('<div class="legend">LoRAs: choose one to use it in the prompt</div>')
        with gr.Row(elem_id="lora-filters", visible=False) as self.filters:
            self.search_box = gr.Textbox(
                label="Search", placeholder="name, trigger words, folder", elem_id="lora-search"
            )
            self.base = gr.Dropdown(
                BASE_CHOICES, value=FITTING, label="Base model", elem_id="lora-base"
            )
            self.order = gr.Dropdown(
                list(ORDERS), value="name", label="Sort by", elem_id="lora-order"
            )
        self.cards = html(elem_id="loras")
        self.more = gr.Button("Show more", size="sm", visible=False, elem_id="more-loras")
        self.count = gr.State(PAGE_SIZE)
        self.timer = gr.Timer(1.0, active=False)  # until the first listing is complete
        # the page's script puts the text typed after <lora: here, and shows the answer
        self.typed = gr.Textbox(label="LoRA name", elem_classes="unseen", elem_id="lora-typed")
        self.offers = html(elem_id="lora-offers")
        # and here the clicked card with the prompt; the answer replaces the prompt
        self.clicked = gr.Textbox(label="Card", elem_classes="unseen", elem_id="lora-clicked")
        self.edited = html(elem_id="lora-edited")
        self.notice = Notice("lora-notice")
        self.model: Component | None = None

    @property
    def views(self) -> list[Component]:
        """Components that change with the list of files."""
        return [self.filters, self.cards, self.more, self.count, self.timer]

    @property
    def filter_inputs(self) -> set[Component]:
        """Components that hold the search and its filters; `wire` must have been called."""
        assert self.model
        return {self.search_box, self.base, self.order, self.model}

    def wire(self, app_state: AppState, model: Component) -> None:
        """Connect the events; `model` is the field of the base model that the files should fit."""
        self.model = model

        def anew(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            return self.show(app_state, self.current_filter(app_state, sent), fresh=False)

        def further(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            return self.show(
                app_state, self.current_filter(app_state, sent), sent[self.count] + PAGE_SIZE, False
            )

        def offer(typed: str) -> str:
            return markup.offers(
                typed, app_state.loras.complete_name(typed.strip(), MAX_COMPLETIONS)
            )

        def click(sent: str) -> Updates:
            asked = json.loads(sent)
            entry = app_state.library.find(asked["name"])
            weight = markup.default_weight(entry)
            text = toggle_tag(app_state.library, asked["prompt"], entry, weight)
            return {self.edited: markup.edited(asked["number"], text)}

        for (
            part
        ) in self.filter_inputs:  # settings imported from a picture may change the model, too
            part.change(anew, self.filter_inputs, self.views, **TYPED)
        self.more.click(further, {*self.filter_inputs, self.count}, self.views, **QUICK)
        self.timer.tick(anew, self.filter_inputs, self.views, **QUICK)
        self.typed.change(offer, [self.typed], [self.offers], **TYPED)
        self.notice.answer(self.clicked.change, click, [self.clicked], [self.edited])

    def reload_on(self, app_state: AppState, event: Callable[..., Any]) -> None:
        """List the files anew after an `event`, such as `field.change`."""

        def listed(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            return self.show(app_state, self.current_filter(app_state, sent))

        event(listed, self.filter_inputs, self.views, **QUICK)

    def current_filter(self, app_state: AppState, sent: Mapping[Component, Any]) -> LoraFilter:
        """Search and filters from the values that the page sent."""
        base = app_state.model_base(sent[self.model] or "") if self.model else ""
        return LoraFilter(sent[self.search_box] or "", sent[self.base], sent[self.order], base)

    def show(
        self, app_state: AppState, lora_filter: LoraFilter, limit: int = 0, fresh: bool = True
    ) -> dict[Any, Any]:
        """Updates that show the matching files: `limit` cards, 0 for the first page."""
        matches, limit = (
            app_state.loras.search(lora_filter, fresh),
            min(limit or PAGE_SIZE, MAX_CARDS),
        )
        sets = app_state.workspace.dataset_folders()
        shown = matches.usable[:limit]
        cards = [
            markup.lora_card(
                entry,
                _thumbnail(app_state, entry, sets.get(entry.name)),
                lora_filter.base != FITTING,
            )
            for entry in shown
        ]
        filtered = bool(lora_filter.search) or lora_filter.base != FITTING
        return {
            self.filters: gr.Row(
                visible=matches.total > UNFILTERED or bool(matches.other_base) or filtered
            ),
            self.cards: markup.lora_cards(matches, cards, lora_filter),
            self.more: gr.Button(visible=len(shown) < len(matches.usable) and limit < MAX_CARDS),
            self.count: limit,
            self.timer: gr.Timer(active=matches.reading),
        }


def _thumbnail(app_state: AppState, entry: LoraEntry, pictures: Path | None) -> str:
    """Address of a LoRA's thumbnail: the image beside its file, else the last sample of the
    training of that name, else a picture of the set of that name."""
    images = [entry.preview] if entry.preview else []
    if not images:
        samples = (app_state.workspace.runs / entry.name / "samples").glob("*.png")
        images = sorted(filter(os.path.isfile, samples), key=lambda path: stamp(path)[1])[-1:]
    if not images and pictures:
        images = list(dataset_upload.read_set(pictures).pictures[:1])
    return app_state.media.link(images[0]) if images else ""
