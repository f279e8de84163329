"""CLIP's vocabulary, built from OpenAI's merges."""

import json
from pathlib import Path

from sdlora.prompt import clip_vocabulary
from sdlora.prompt.clip_vocabulary import clip_merges
from sdlora.prompt.tokenizer import open_tokenizer


def test_numbers_are_those_of_openai() -> None:
    """As in clip/simple_tokenizer.py: bytes, bytes that end a word, merges, marks."""
    vocabulary = clip_vocabulary.clip_vocabulary()
    assert len(vocabulary) == clip_vocabulary.SIZE and len(clip_merges()) == 48894
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368}
    assert {word: vocabulary[word] for word in known} == known
    marks = [vocabulary[mark] for mark in (clip_vocabulary.BEGIN, clip_vocabulary.END)]
    assert marks == [49406, 49407]


def test_tokens_are_counted_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary.clip_vocabulary()), "utf-8")
    lines = "\n".join(" ".join(pair) for pair in clip_merges())
    (folder / "merges.txt").write_text(lines, "utf-8")
    units = open_tokenizer(tmp_path)("a photo of a cat")
    assert [unit.numbers[0] for unit in units] == [320, 1125, 539, 320, 2368]
