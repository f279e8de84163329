"""A caption is text: the prompt that is made of it says that text and nothing else."""

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdlora.prompt.emphasis import compose, parse_emphasis
from sdlora.prompt.escaping import escape_prompt
from sdlora.prompt.expansion import expand
from sdlora.prompt.scanner import tokens
from sdlora.prompt.schedules import schedule
from sdlora.prompt.tags import parse_prompt
from sdlora.training import trainer
from sdlora.training.sample_images import prompts_from

TEXTS = (
    "zibo robot, c# key, smile", "<lora:other:1>, sea", "lora:other:1, sea", "[night:day:0.5]",
    "miku (singer), (red ball:1.4)", "{red|blue} ball", "a __pet__ and __a__b__", "a BREAK b",
    "a cat AND a dog:-1", r"\m/ and \(x\)", "ends with \\", "a_b __ c", "$name, {prompt}",
    "<b>not a tag</b>", "", "ein Häuschen", "___", "lyco:x", "[a|b], :-) <3",
)  # fmt: skip


def read(prompt: str) -> list[tuple[str, float]]:
    """What an image is drawn from, through every stage of the prompt language."""
    expanded = expand(prompt, 0, lists=lambda name: ["drawn"]).text
    ((_, text),) = schedule(parse_prompt(expanded).text, 10)
    assert compose(text) == [(text, 1.0)]
    return parse_emphasis(text)


@pytest.mark.parametrize("text", TEXTS)
def test_an_escaped_text_is_drawn_as_it_stands(text: str) -> None:
    assert read(escape_prompt(text)) == [(text, 1.0)]


def test_any_text_survives() -> None:
    rng = random.Random(0)
    pieces = [*"\\()[]{}|$#:<>_ ,.-1aA", "__a__", "lora:", "<lora:b:1>", "BREAK", " AND ", "é"]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12))).strip()
        escaped = escape_prompt(text)
        assert read(escaped) == [(text, 1.0)], text
        assert not {t.kind for t in tokens(escaped)} & {"tag", "bare", "wildcard", "word"}


def test_plain_text_is_left_as_it_is() -> None:
    assert escape_prompt("zibo, a red ball: it's 1_2 <3") == "zibo, a red ball: it's 1_2 <3"


def test_a_training_samples_its_captions_as_they_are_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        trainer, "draw_samples", lambda _, prompts, *rest, **more: drawn.extend(prompts) or ()
    )
    training = SimpleNamespace(
        settings=SimpleNamespace(sample_prompts=(), seed=0),
        dataset=SimpleNamespace(captions=["zibo, c# key (x:1.4)"]),
        run=trainer.RunFolder(tmp_path), step=1, family=None,
        state=SimpleNamespace(ema_weights=nullcontext), pace=SimpleNamespace(sampled=int),
    )  # fmt: skip
    assert [*trainer.Trainer.sample(training, bool)] == []  # type: ignore[arg-type]
    assert [read(prompt) for prompt in drawn] == [[("zibo, c# key (x:1.4)", 1.0)]]


def test_samples_say_what_is_learnt_and_chosen_prompts_are_prompts() -> None:
    captions = ["zibo robot, c# key", "miku (singer)"]
    assert [read(p)[0][0] for p in prompts_from((), captions)] == captions
    assert prompts_from(("(zibo:1.2)",), captions) == ["(zibo:1.2)"]
