"""A browser without a screen: it speaks to the page as Gradio's JavaScript does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from fakes import fake_worker
from webui import server
from webui.app_state import AppState


class StudioWithoutWorker(AppState):
    """Tests start the worker that they want."""

    def wake(self) -> None:
        pass


class Browser:
    """Speaks to the page as its JavaScript does; components are named by their `elem_id`."""

    def __init__(self, studio: AppState) -> None:
        app = server.make_app(studio)
        self.http = TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
        self.config = self.http.get("/config").json()
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.ids = {p["props"].get("elem_id"): p["id"] for p in self.config["components"]}
        self.values = {i: part["props"].get("value") for i, part in self.parts.items()}

    def set(self, elem_id: str, value: Any) -> None:
        self._type(self.ids[elem_id], value)

    def _type(self, part: int, value: Any) -> None:
        """A value as the browser would have it in this component: what is typed is text."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        typed = self.parts[part]["type"] == "textbox" and is_number
        self.values[part] = str(value) if typed else value

    def _labelled(self, label: str) -> int:
        # the first: both tabs have some settings, Generate comes first
        return next(i for i, p in self.parts.items() if p["props"].get("label") == label)

    def set_labelled(self, label: str, value: Any) -> None:
        self._type(self._labelled(label), value)

    def labelled(self, label: str) -> Any:
        return self.values[self._labelled(label)]

    def upload(self, elem_id: str, path: Path) -> None:
        """Choose a file with an upload button."""
        with path.open("rb") as file:
            answer = self.http.post("/gradio_api/upload", files={"files": (path.name, file)})
        assert answer.status_code == 200, answer.text
        [kept] = answer.json()
        said = {"path": kept, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
        self.set(elem_id, said)
        self.fire(self.ids[elem_id], "upload")

    def value(self, elem_id: str) -> Any:
        return self.values[self.ids[elem_id]]

    def fire(self, target: int | None, event: str, query: str = "") -> None:
        """Run the handler of an event, and take in what it changes. What the page's script does by
        itself is not done."""
        handlers = [d for d in self.config["dependencies"] if [target, event] in d["targets"]]
        (one,) = [d for d in handlers if d["backend_fn"]]
        body = {
            "fn_index": one["id"],
            "data": [self.values[i] for i in one["inputs"]],
            "session_hash": "test",
        }
        answer = self.http.post(f"/gradio_api/run/predict{query}", json=body)
        assert answer.status_code == 200, answer.text
        for output, value in zip(one["outputs"], answer.json()["data"], strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.parts[output]["props"].update(value)
                if "value" not in value:
                    continue
                value = value["value"]
            self.values[output] = value

    def click(self, elem_id: str) -> None:
        self.fire(self.ids[elem_id], "click")

    def open(self, query: str = "") -> None:
        (one,) = [d for d in self.config["dependencies"] if d["targets"][0][1] == "load"]
        self.fire(one["targets"][0][0], "load", query)

    def tick(self) -> None:
        for part in [p for p in self.parts.values() if p["type"] == "timer"]:
            self.fire(part["id"], "tick")

    def prop(self, elem_id: str, name: str) -> Any:
        return self.parts[self.ids[elem_id]]["props"].get(name)


@contextmanager
def working(studio: AppState) -> Iterator[None]:
    """A worker, until the queue is empty."""
    worker = fake_worker(studio.workspace.root, idle_s=0.2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
