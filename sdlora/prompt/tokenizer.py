"""Tokenizer of a model folder, without transformers, to count tokens.

CLIP's byte-level BPE (Radford et al. 2021, arXiv:2103.00020). Only the vocabulary and the merges
are read from the folder; all other entries of its files are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from sdlora.errors import ModelError
from sdlora.prompt.chunks import Tokenize, Unit
from sdlora.text_files import json_value

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def open_tokenizer(folder: Path) -> Tokenize:
    """Return the tokenize function of the diffusers folder `folder`.

    ModelError when it has no CLIP tokenizer.
    """
    vocabulary, merges = _read_vocabulary(folder / "tokenizer")
    bpe = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END)
    tokenizer = Tokenizer(bpe)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([mark for mark in (_BEGIN, _END) if mark in vocabulary])

    def tokenize(text: str) -> Sequence[Unit]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        units, read = [], 0
        for number, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            units.append(Unit((number,), text[read:end]))
            read = max(read, end)
        return units

    return tokenize


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return (vocabulary, merges) from tokenizer.json, else from vocab.json and merges.txt."""
    try:
        if (folder / "tokenizer.json").is_file():
            model = json_value((folder / "tokenizer.json").read_text("utf-8"))["model"]
            vocabulary, lines = model["vocab"], model["merges"]
        else:
            vocabulary = json_value((folder / "vocab.json").read_text("utf-8"))
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
            lines = [line for line in lines if line and not line.startswith("#version")]
        merges = [_merge_pair(line) for line in lines]
        known = all(
            part in vocabulary
            for first, second in merges
            for part in (first, second, first + second)
        )
        if not known or _END not in vocabulary or not all(map(_is_token_id, vocabulary.values())):
            raise ValueError("its merges and its vocabulary do not agree")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(
            "{folder} holds no tokenizer of CLIP's kind: {why}", folder=folder, why=error
        ) from None
    return vocabulary, merges


def _merge_pair(line: Any) -> tuple[str, str]:
    first, second = line.split(" ") if isinstance(line, str) else line
    return first, second


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31
