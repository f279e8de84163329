"""The LoRA browser: files are looked for on the server, so that ten thousand are as quick as ten.

Only some are shown, and more when asked for. Names are completed from the same list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.architectures import BASES
from sdlora.lora.library.library import LoraEntry, stamp
from webui import dataset_upload, markup
from webui.app_state import AppState
from webui.lora_details import ANY_BASE, FITTING, ORDERS, LoraFilter
from webui.notice import Notice, Updates
from webui.prompt_tags import toggled
from webui.widgets import QUICK, html

AT_ONCE = 24  # cards
MOST = 8 * AT_ONCE  # beyond, looking for one is quicker than looking through
FEW = 8  # files that need no search
OFFERED = 8  # names, while one is typed
BASE_CHOICES = [("This model", FITTING), ("All", ANY_BASE)]
BASE_CHOICES += [(base.title, name) for name, base in BASES.items()]


class LoraBrowser:
    """The components, built where it stands, and what they do."""

    def __init__(self) -> None:
        html('<div class="legend">LoRAs: choose one to use it in the prompt</div>')
        with gr.Row(elem_id="lora-filters", visible=False) as self.filters:
            self.words = gr.Textbox(
                label="Find", placeholder="name, words, folder", elem_id="lora-search"
            )
            self.base = gr.Dropdown(BASE_CHOICES, value=FITTING, label="For", elem_id="lora-base")
            self.order = gr.Dropdown(list(ORDERS), value="name", label="By", elem_id="lora-order")
        self.cards = html(elem_id="loras")
        self.more = gr.Button("Show more", size="sm", visible=False, elem_id="more-loras")
        self.count = gr.State(AT_ONCE)
        self.timer = gr.Timer(1.0, active=False)  # until the first listing is there
        # the page's script writes what is typed after <lora: here, and shows what comes back
        self.typed = gr.Textbox(label="LoRA name", elem_classes="unseen", elem_id="lora-typed")
        self.offers = html(elem_id="lora-offers")
        # and here the card that was clicked, with the prompt; what comes back replaces that
        self.clicked = gr.Textbox(label="Card", elem_classes="unseen", elem_id="lora-clicked")
        self.edited = html(elem_id="lora-edited")
        self.notice = Notice("lora-notice")
        self.model: Component | None = None

    @property
    def views(self) -> list[Component]:
        """What changes with what there is."""
        return [self.filters, self.cards, self.more, self.count, self.timer]

    @property
    def asked(self) -> set[Component]:
        """What tells what somebody looks for, once it is wired."""
        assert self.model
        return {self.words, self.base, self.order, self.model}

    def wire(self, studio: AppState, model: Component) -> None:
        """`model` is the field whose base the files shall fit."""
        self.model = model

        def anew(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            return self.show(studio, self.wish(studio, sent), fresh=False)

        def further(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            return self.show(studio, self.wish(studio, sent), sent[self.count] + AT_ONCE, False)

        def offer(typed: str) -> str:
            return markup.offers(typed, studio.loras.begin_with(typed.strip(), OFFERED))

        def click(sent: str) -> Updates:
            asked = json.loads(sent)
            entry = studio.library.find(asked["name"])
            weight = markup.usual_weight(entry)
            text = toggled(studio.library, asked["prompt"], entry, weight)
            return {self.edited: markup.edited(asked["number"], text)}

        last: dict[str, Any] = {"trigger_mode": "always_last", **QUICK}
        for part in self.asked:  # a picture's settings may change the model, too
            part.change(anew, self.asked, self.views, **last)
        self.more.click(further, {*self.asked, self.count}, self.views, **QUICK)
        self.timer.tick(anew, self.asked, self.views, **QUICK)
        self.typed.change(offer, [self.typed], [self.offers], **last)
        self.notice.answer(self.clicked.change, click, [self.clicked], [self.edited])

    def wish(self, studio: AppState, sent: Mapping[Component, Any]) -> LoraFilter:
        """What somebody looks for, as the page sent it."""
        base = studio.model_base(sent[self.model] or "") if self.model else ""
        return LoraFilter(sent[self.words] or "", sent[self.base], sent[self.order], base)

    def show(
        self, studio: AppState, wish: LoraFilter, most: int = 0, fresh: bool = True
    ) -> dict[Any, Any]:
        """Updates that bring what fits the wish onto the page; `most` cards, 0 a first few."""
        found, most = studio.loras.search(wish, fresh), min(most or AT_ONCE, MOST)
        sets = studio.workspace.dataset_folders()
        shown = found.usable[:most]
        cards = [
            markup.lora_card(one, _face(studio, one, sets.get(one.name)), wish.base != FITTING)
            for one in shown
        ]
        filtered = bool(wish.words) or wish.base != FITTING
        return {
            self.filters: gr.Row(visible=found.total > FEW or bool(found.other_base) or filtered),
            self.cards: markup.lora_cards(found, cards, wish),
            self.more: gr.Button(visible=len(shown) < len(found.usable) and most < MOST),
            self.count: most,
            self.timer: gr.Timer(active=found.reading),
        }


def _face(studio: AppState, entry: LoraEntry, pictures: Path | None) -> str:
    """A picture for a LoRA: one beside its file, else the last sample of the training of its name,
    else one of the set of its name."""
    found = [entry.preview] if entry.preview else []
    if not found:
        samples = (studio.workspace.runs / entry.name / "samples").glob("*.png")
        found = sorted(filter(os.path.isfile, samples), key=lambda path: stamp(path)[1])[-1:]
    if not found and pictures:
        found = list(dataset_upload.look(pictures).pictures[:1])
    return studio.media.link(found[0]) if found else ""
