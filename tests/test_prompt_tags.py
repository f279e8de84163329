"""A card and the prompt agree: on what is used, what a click writes, what a second one takes."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdlora.errors import LoraFileError
from sdlora.lora.library.library import Library, LoraEntry
from sdlora.prompt import parse_prompt
from sdlora.prompt.expansion import strip_comments
from webui.prompt_tags import file_of_tag, toggle_tag, usable_name, visible_tags, with_tag

NAMES = ("neon", "neon glow", "styles/film.grain")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("loras")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    for number, stem in enumerate((*NAMES, "Style: Noir v1")):
        path = folder / f"{stem}.safetensors"
        path.parent.mkdir(exist_ok=True)
        halves = {"lora_down": np.full((2, 8), number, "f2"), "lora_up": np.zeros((8, 2), "f2")}
        words = {"modelspec.trigger_phrase": f"{stem} light"}
        save_file({f"{name}.{half}.weight": value for half, value in halves.items()}, path, words)
    return Library([folder])


def entry(library: Library, name: str) -> LoraEntry:
    return next(one for one in library.list() if one.full_name == name)


def used(library: Library, prompt: str) -> set[str]:
    """What a picture of the prompt would use: an oracle that does not know the cards."""
    names = {tag.name for tag in parse_prompt(strip_comments(prompt)).loras} - {"nobody"}
    return {library.find(name).full_name for name in names}


PROMPTS = [
    "", "a house", "a house,", "a house # later", "# only a comment", "a # b\nc # d", "a \\# house",
    "a [house|tree]", "a <lora:neon glow:0.5>", "<lora:neon:much>", "a house # <lora:neon:1>",
    "a, <lora:neon:much>, b", "{a|b} <lora:nobody:1>", "a\n",
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_one_click_uses_the_file_and_a_second_takes_all_of_it(
    library: Library, prompt: str, name: str
) -> None:
    one = entry(library, name)
    if name in used(library, prompt):
        assert name not in used(library, toggle_tag(library, prompt, one, 0.8))
        return
    on = toggle_tag(library, prompt, one, 0.8)
    assert used(library, on) == used(library, prompt) | {name}
    assert f"{name} light" in strip_comments(on) or "much" in prompt
    off = toggle_tag(library, on, one, 0.8)
    assert used(library, off) == used(library, prompt)
    assert f"{name} light" not in off, "the words that came with it go with it"
    if "much" not in prompt:
        assert off.rstrip(" ,\n") == prompt.rstrip(" ,\n")


def test_words_of_the_users_own_stay(library: Library) -> None:
    neon = entry(library, "neon")
    prompt = "neon light house, <lora:neon:0.8>"
    assert toggle_tag(library, prompt, neon, 0.8) == "neon light house"


def test_a_name_that_no_tag_can_say_is_called_by_its_hash(library: Library) -> None:
    noir = entry(library, "Style: Noir v1")
    prompt = toggle_tag(library, "a house", noir, 0.8)
    assert used(library, prompt) == {"Style: Noir v1"}
    assert toggle_tag(library, prompt, noir, 0.8) == "a house"
    assert usable_name(library, entry(library, "neon")) == "neon"


def test_tags_are_those_of_the_prompts_own_reader(library: Library) -> None:
    for prompt in PROMPTS:
        shown = [t for t in visible_tags(prompt) if parse_prompt(t.text).loras]
        names = [lora.name for lora in parse_prompt(strip_comments(prompt)).loras]
        assert [parse_prompt(token.text).loras[0].name for token in shown] == names
        for token in visible_tags(prompt):
            assert prompt[token.start : token.end] == token.text
            assert file_of_tag(library, token) in ("", *NAMES)


def test_a_tag_goes_where_no_comment_hides_it() -> None:
    assert with_tag("a house # later", "neon", (), 0.8) == "a house # later\n<lora:neon:0.8>"


def test_a_file_that_is_gone_is_an_error(tmp_path: Path, library: Library) -> None:
    elsewhere = Library([tmp_path])
    with pytest.raises(LoraFileError, match="no tag can mean 'Style: Noir v1'"):
        usable_name(elsewhere, entry(library, "Style: Noir v1"))
