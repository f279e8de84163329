"""Vocabulary of OpenAI's CLIP (arXiv:2103.00020), which Stable Diffusion 1, 2 and XL read.

The merges are OpenAI's own file (MIT, see LICENSE beside it); the vocabulary follows from them as
in openai/CLIP, clip/simple_tokenizer.py.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49408  # tokens


@cache
def clip_merges() -> list[tuple[str, str]]:
    """Return the 48,894 merges, in the order of their rank."""
    lines = gzip.decompress(FILE.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : SIZE - 2 * 256 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in merges)]


@cache
def clip_vocabulary() -> dict[str, int]:
    """Return token -> its number: bytes, bytes that end a word, merges, and the two marks."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [first + second for first, second in clip_merges()]
    return {token: number for number, token in enumerate([*tokens, BEGIN, END])}


def _byte_letters() -> list[str]:
    """Return a printable letter for each of the 256 bytes, printable ones first (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
