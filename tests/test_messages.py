"""Messages: filled in the words of each surface, as whole sentences, and kept over a file."""

from pathlib import Path

import pytest

from sdlora.errors import LoraFileError, SdloraError, SettingsError
from sdlora.events import Failed, Warned, from_line, to_line
from sdlora.messages import COMMAND, PAGE, TEXT, Message, PerSurface, Setting
from sdlora.settings.base import Settings

WRONG = Message(
    "{setting} = {given} does not go with {file}; {advice}",
    setting=Setting("batch_size"),
    given=0,
    file=Path("/data/sets/cat.png"),
    advice=PerSurface(command="add --overwrite", page="choose another name"),
)


@pytest.mark.parametrize(
    ("surface", "text"),
    [
        (TEXT, "batch_size = 0 does not go with /data/sets/cat.png; add --overwrite"),
        (COMMAND, "--batch-size = 0 does not go with /data/sets/cat.png; add --overwrite"),
        (PAGE, "Batch size = 0 does not go with cat.png; choose another name"),
    ],
)
def test_values_in_the_words_of_the_surface(surface, text):
    assert WRONG.on(surface) == text


def test_is_its_neutral_text():
    assert WRONG.on(TEXT) == WRONG
    assert str(SdloraError(WRONG)) == WRONG


def test_braces_of_a_text_without_values_stay():
    assert Message("a {b} {0} {") == "a {b} {0} {"


def test_values_are_not_templates():
    assert Message("there is no LoRA {name!r}", name="{x}") == "there is no LoRA '{x}'"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Message("the disk is full"), "The disk is full."),
        (Message("cat.png has no caption"), "cat.png has no caption."),
        (Message("{file} is empty", file=Path("a/cat.txt")), "cat.txt is empty."),
        (Message("what is this?"), "What is this?"),
        (Message("{setting}: too low", setting=Setting("steps")), "Steps: too low."),
    ],
)
def test_sentences_begin_with_a_capital_and_end_with_a_stop(message, sentence):
    assert message.sentences(PAGE) == [sentence]


def test_lines_are_sentences_each():
    both = Message.of_lines([Message("{s} is low", s=Setting("steps")), "and more"])
    assert both == "steps is low\nand more"
    assert both.sentences(PAGE) == ["Steps is low.", "And more."]


def test_message_within_a_message():
    outer = Message("{name} is left out: {why}", name="a", why=WRONG)
    assert outer.on(PAGE).endswith("Batch size = 0 does not go with cat.png; choose another name")


@pytest.mark.parametrize("event", [Failed(WRONG, "see log"), Warned("plain {x}", WRONG)])
def test_events_keep_templates_over_a_file(event):
    again = from_line(to_line(event))
    assert again == event
    for name in ("message", "advice"):
        text = getattr(event, name)
        if isinstance(text, Message):
            assert getattr(again, name).on(PAGE) == text.on(PAGE)


def test_file_errors_keep_code_and_values():
    error = LoraFileError("{file} is cut short", "cut_short", file=Path("/l/x.safetensors"))
    assert (error.code, error.message.on(PAGE)) == ("cut_short", "x.safetensors is cut short")


def test_settings_errors_name_each_wrong_field():
    class Sums(Settings):
        batch_size: int = 1
        steps: int = 2

    with pytest.raises(SettingsError) as caught:
        Sums.from_values({"batch_size": "many", "steps": "few", "stepz": 1})
    assert set(caught.value.fields) == {"batch_size", "steps"}
    assert caught.value.fields["batch_size"].on(PAGE) == (
        "Batch size must be a whole number; 'many' was given"
    )
    assert caught.value.message.on(COMMAND).splitlines()[2] == (
        "there is no setting 'stepz'. Did you mean steps?"
    )
