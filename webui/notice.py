"""Notices: the answer to an action, shown beside its button.

A notice belongs to the actions of one place: it shows the result of the last one, until the next
action or its × removes it. Only `answer` writes it, so a refresh by a timer or another run never
removes a message that has not been read.
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
from webui.calls import disk_error
from webui.widgets import QUICK, html

Updates = dict[Any, Any]
NOTICE_CLASS = "answer"  # CSS class of every notice


@dataclass(frozen=True)
class Reply:
    """Updates of the page after an action, and the HTML of its notice."""

    updates: Updates = field(default_factory=dict)
    html: str = ""


class Notice:
    """Place of one notice, built where it stands, with its × button."""

    def __init__(self, name: str) -> None:
        with gr.Row(elem_classes=NOTICE_CLASS):
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
        error_html: Callable[[SdloraError], str] = markup.problem,
        **options: Any,
    ) -> Any:
        """Let `act` handle an `event` such as `button.click`; the HTML of its reply, else
        `error_html` of its error, is shown in the notice."""

        def acted(*sent: Any) -> Updates:
            try:
                done = act(*sent)
            except SdloraError as error:
                return {self._place: error_html(error)}
            except (OSError, sqlite3.Error) as error:  # a full or read-only disk
                return {self._place: markup.problem(disk_error(error))}
            reply = done if isinstance(done, Reply) else Reply(done)
            return {**reply.updates, self._place: reply.html}

        return event(acted, inputs, [*outputs, self._place], **{**QUICK, **options})
