"""The answer to an action, where the action is.

A notice belongs to the actions of one place: it shows what became of the last of them, until the
next or its own × takes it away. `answer` is the only way to write it, so that what refreshes the
page, a timer or another run, can never clear what somebody has not read yet.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import SdloraError
from webui import markup
from webui.calls import failed_disk
from webui.widgets import QUICK, html

Updates = dict[Any, Any]
PLACE = "answer"  # the class of every notice's element


@dataclass(frozen=True)
class Reply:
    """What an action changes on the page, and the HTML that tells of it."""

    updates: Updates = field(default_factory=dict)
    html: str = ""


class Notice:
    """One place for answers, built where it stands, and its × beside it."""

    def __init__(self, name: str) -> None:
        with gr.Row(elem_classes=PLACE):
            self._place = html(elem_id=name)
            close = gr.Button("Close", size="sm", elem_id=f"{name}-close", elem_classes="close")
        close.click(lambda: "", None, [self._place], **QUICK)

    def answer(
        self,
        event: Callable[..., Any],
        act: Callable[..., Reply | Updates],
        inputs: Any,
        outputs: Iterable[Component],
        *,
        marks: Callable[[SdloraError], str] = lambda error: "",
        **options: Any,
    ) -> Any:
        """Have `act` answer an `event` such as `button.click`; what it raises stands here, and else
        what it tells, or nothing. `marks` makes the HTML that shows which fields an error is
        about: it goes with the notice."""

        def acted(*sent: Any) -> Updates:
            try:
                done = act(*sent)
            except SdloraError as error:
                return {self._place: markup.problem(error) + marks(error)}
            except (OSError, sqlite3.Error) as error:  # of a disk that is full, or read only
                return {self._place: markup.problem(failed_disk(error))}
            told = done if isinstance(done, Reply) else Reply(done)
            return {**told.updates, self._place: told.html}

        return event(acted, inputs, [*outputs, self._place], **{**QUICK, **options})
