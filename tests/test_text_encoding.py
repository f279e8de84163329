"""Texts as the encoders read them: against the pipelines' own, and against plain references."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters import Blend
from sdlora.errors import LoraFileError
from sdlora.lora.format.textual_inversion import inversion_base, read_inversion
from sdlora.models.base import ModelFamily
from sdlora.models.text_encoding import TextEncodeOptions
from tiny import open_tiny

KINDS = ("sd1", "sd2", "sdxl")
PLAIN = ("a cat", "", "it's 2 cats, 猫", "x" * 75)


def read(family: ModelFamily, text: str, **manner: object) -> dict[str, Tensor]:
    with torch.no_grad():
        options = TextEncodeOptions(**manner)  # type: ignore[arg-type]
        encoded = family.encode_prompt(text, options).tensors
    return {name: tensor[0] for name, tensor in encoded.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_text_is_read_as_the_pipeline_does(kind: str, dtype: torch.dtype) -> None:
    family = open_tiny(kind, dtype)
    for text in PLAIN:
        ours = read(family, text)
        options = {"do_classifier_free_guidance": False, "device": family.device}
        if kind != "sdxl":
            options["num_images_per_prompt"] = 1
        with torch.no_grad():
            theirs = family.pipeline.encode_prompt([text], **options)
        assert torch.equal(ours["context"], theirs[0][0])
        if kind == "sdxl":
            assert torch.equal(ours["pooled"], theirs[2][0])


def states(family: ModelFamily, text: str, skip: int = 1) -> list[Tensor]:
    """(77,D) of each encoder for a text without signs, its layers run one by one, in our own way
    from the embeddings on: nothing of `hidden_states` is used."""
    found = []
    for key, model in family.text_encoders.items():
        tokenizer = family.tokenizer(key)
        numbers = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        inner = getattr(model, "text_model", model)
        its = inner.embeddings(input_ids=numbers)
        mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
        count = len(inner.encoder.layers)
        left_out = max(skip - 1, 1) if family.name == "sdxl" else skip - 1
        left_out = max(left_out - 1, 0) if family.name == "sd2" else left_out
        for layer in inner.encoder.layers[: count - left_out]:
            its = layer(its, attention_mask=mask)
        if family.name != "sdxl":
            its = inner.final_layer_norm(its)
        found.append(its[0].detach())
    return found


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_clip_skip_reads_the_layer_that_a_hand_does(kind: str, skip: int) -> None:
    """A1111's count: SDXL reads its last but one anyway, SD 2's files lack the last."""
    family = open_tiny(kind)
    expected = torch.cat(states(family, "a cat", skip), -1)
    got = read(family, "a cat", clip_skip=skip)["context"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    changed = not torch.equal(got, read(family, "a cat")["context"])
    assert changed == (kind == "sd1" and skip == 2)


def test_a_deeper_skip_than_there_are_layers_reads_the_first() -> None:
    for kind, deepest in (("sd1", 2), ("sd2", 3), ("sdxl", 2)):
        family = open_tiny(kind)
        assert family.max_clip_skip == deepest
        deep = read(family, "a cat", clip_skip=deepest)["context"]
        assert torch.equal(read(family, "a cat", clip_skip=12)["context"], deep)


@pytest.mark.parametrize("emphasis", ["original", "no_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_emphasis_is_a_plain_product(kind: str, emphasis: str) -> None:
    """Letters are tokens here: 'a', 'b', 'c' behind the first mark."""
    family = open_tiny(kind)
    weights = torch.ones(77)
    weights[2], weights[3] = 1.5, -0.25
    expected = []
    for plain in states(family, "a b c"):
        its = plain * weights[:, None]
        if emphasis == "original":
            its = its * (plain.mean() / its.mean())
        expected.append(its)
    got = read(family, "a (b:1.5) (c:-0.25)", emphasis=emphasis)
    torch.testing.assert_close(got["context"], torch.cat(expected, -1), rtol=1e-3, atol=1e-5)
    if kind == "sdxl":
        assert torch.equal(got["pooled"], read(family, "a b c")["pooled"])
    assert torch.equal(read(family, "(a)[b]((c:1):1)", emphasis=emphasis)["context"][:1],
                       read(family, "(a)[b](c:1)", emphasis=emphasis)["context"][:1])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_its_chunks_side_by_side(kind: str) -> None:
    family = open_tiny(kind)
    one, two = "a" * 60 + ",", "b" * 30  # the comma rule cuts here
    for text in (one + two, f"{one} BREAK {two}", f"({one} BREAK {two}:1.0)"):
        got = read(family, text)
        parts = [read(family, part) for part in (one, two)]
        torch.testing.assert_close(got["context"], torch.cat([its["context"] for its in parts]))
        if kind == "sdxl":
            torch.testing.assert_close(got["pooled"], parts[0]["pooled"])


def test_nothing_is_zeros_where_the_model_was_made_so() -> None:
    family = open_tiny("sdxl")
    assert not any(its.any() for its in family.encode_empty_prompt().tensors.values())
    assert (
        family.encode_empty_prompt().tensors["context"][0].shape
        == read(family, "")["context"].shape
    )
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    with torch.no_grad():
        assert torch.equal(
            family.encode_empty_prompt().tensors["context"][0], read(family, "")["context"]
        )
    sd = open_tiny("sd1")
    with torch.no_grad():
        assert torch.equal(sd.encode_empty_prompt().tensors["context"][0], read(sd, "")["context"])


FORMS = {
    "a1111": ("sd1", lambda v: {"emb_params": v(3, 16)}),
    "diffusers": ("sd1", lambda v: {"<cat-toy>": v(1, 16)[0]}),
    "sdxl": ("sdxl", lambda v: {"clip_l": v(2, 16), "clip_g": v(2, 24)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_textual_inversion_is_read_as_its_vectors(form: str, tmp_path: Path) -> None:
    """Put by hand in the place of letters that the tokenizer knows."""
    kind, make = FORMS[form]
    family, rng = open_tiny(kind), torch.Generator().manual_seed(0)
    tensors = make(lambda *shape: torch.randn(shape, generator=rng))
    save_file(tensors, tmp_path / "Zibo-2.safetensors")
    file = read_inversion(tmp_path / "Zibo-2.safetensors")
    [vectors] = file.embeddings.values()
    count = len(next(iter(vectors.values())))
    fakes = " ".join("xyz"[:count])
    hooks = []
    for model, rows in zip(family.text_encoders.values(), tensors.values(), strict=True):
        rows = rows.view(-1, rows.shape[-1])

        def replace(_m: object, _i: object, out: Tensor, rows: Tensor = rows) -> Tensor:
            out[0, 2 : 2 + len(rows)] = rows
            return out

        hooks.append(model.get_input_embeddings().register_forward_hook(replace))
    expected = read(family, f"a {fakes} b")
    for hook in hooks:
        hook.remove()
    plain = read(family, "a xzibo-2 b")["context"]
    blend = Blend(family)
    blend.apply([(file, 1.0, 1.0)])
    got = read(family, "a zibo-2 b")
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)
    assert torch.equal(read(family, "a xzibo-2 b")["context"], plain)  # a word of its own only
    weighed = read(family, "a (ZIBO-2:1.5) b", emphasis="no_norm")["context"]
    ratio = weighed[2 : 2 + count] / got["context"][2 : 2 + count]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.5))
    blend.clear()


def test_what_is_no_textual_inversion_is_refused(tmp_path: Path) -> None:
    rows = torch.ones(2, 768)
    cases = {
        "two": ({"a": rows, "b": rows + 1}, "2 tensors"),
        "cube": ({"a": torch.ones(2, 2, 2)}, "vectors by width"),
        "many": ({"a": torch.ones(76, 8)}, "vectors by width"),
        "nan": ({"a": rows * float("nan")}, "not finite"),
    }
    for name, (tensors, said) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(LoraFileError, match=said):
            read_inversion(tmp_path / f"{name}.safetensors")
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(LoraFileError, match="may hold code"):
        read_inversion(tmp_path / "old.pt")
    save_file({"emb_params": rows}, tmp_path / "ok.safetensors")
    assert inversion_base(read_inversion(tmp_path / "ok.safetensors")) == "Stable Diffusion 1"


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_read_from_the_layer_that_was_chosen(kind: str) -> None:
    family = open_tiny(kind)
    captions = ("a cat", "x" * 200)
    family.caption_clip_skip = 2
    try:
        with torch.no_grad():
            got = family.encode_captions(captions).tensors["context"]
    finally:
        family.caption_clip_skip = 1
    for caption, row in zip(captions, got, strict=True):
        expected = read(family, caption, clip_skip=2)["context"]
        torch.testing.assert_close(row[: len(expected)], expected)
