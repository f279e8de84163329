"""Words that a LoRA brings: read as their vectors while it stands, and nothing is left of them."""

import pytest
import torch
from torch import Tensor

from sdlora.adapters import Blend, match_layers
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily
from tiny import open_tiny, weights_hash

VECTORS = {"sd1": {"": (3, 16)}, "sdxl": {"clip_l": (3, 16), "clip_g": (3, 24)}}
UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def bundle(kind: str, *words: str, seed: int = 0) -> LoraFile:
    """A LoRA that changes next to nothing and brings these words."""
    rng = torch.Generator().manual_seed(seed)
    nothing = Adapter.lora(torch.zeros(1, 32), torch.zeros(32, 1), 1.0)
    vectors = {
        word: {key: torch.randn(shape, generator=rng) for key, shape in VECTORS[kind].items()}
        for word in words
    }
    return LoraFile({UNET: nothing}, {}, vectors)


def state(family: ModelFamily) -> tuple[object, ...]:
    """All that words could leave a trace in."""
    tokenizers = [v for k, v in family.pipeline.components.items() if "tokenizer" in k]
    return (
        weights_hash(family),
        [id(one) for one in tokenizers],
        [(len(one), one.get_added_vocab(), one("a zibo cat").input_ids) for one in tokenizers],
        [m.get_input_embeddings() for m in family.text_encoders.values()],
        [m.config.to_dict() for m in family.text_encoders.values()],
        [getattr(m, "text_model", m).eos_token_id for m in family.text_encoders.values()],
    )


def read_by_hand(family: ModelFamily, part: str, vectors: Tensor) -> Tensor:
    """The first layer's input for 'a' and three vectors, put in the place of three letters."""
    tokenizer = family.pipeline.tokenizer if part != "te2" else family.pipeline.tokenizer_2
    model = family.text_encoders[part]
    tokens = tokenizer("a x y z", padding="max_length", return_tensors="pt").input_ids
    table = model.get_input_embeddings()
    rows = table(tokens)
    rows[0, 2:5] = vectors

    def replace(_: object, _x: object, _y: Tensor) -> Tensor:
        return rows

    hook = table.register_forward_hook(replace)
    answer = model(tokens, output_hidden_states=True).hidden_states[-1]
    hook.remove()
    return answer


@pytest.mark.parametrize("kind", VECTORS)
def test_a_word_is_read_as_its_vectors(kind: str) -> None:
    family, file = open_tiny(kind), bundle(kind, "zibo")
    vectors = file.embeddings["zibo"]
    wanted = {
        part: read_by_hand(family, part, vectors[key])
        for part, key in zip(family.text_encoders, vectors, strict=True)
    }
    blend = Blend(family)
    blend.apply([(file, 1.0, 1.0)])
    assert not blend.notes
    for part, expected in wanted.items():
        name = family.text_encoder_names[part].replace("text_encoder", "tokenizer")
        tokenizer = getattr(family.pipeline, name)
        text = family.pipeline.maybe_convert_prompt("a zibo", tokenizer)
        tokens = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        got = family.text_encoders[part](tokens, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", VECTORS)
def test_words_leave_no_trace(kind: str) -> None:
    family = open_tiny(kind)
    was, blend = state(family), Blend(family)
    plain = family.encode_prompts(["a zibo cat"]).tensors["context"]
    first, second = bundle(kind, "zibo", "qux"), bundle(kind, "zork", seed=1)
    for loras in ([first], [first, second], [second], [], [first]):
        blend.apply([(file, 1.0, 1.0) for file in loras])
        same = torch.equal(family.encode_prompts(["a zibo cat"]).tensors["context"], plain)
        assert same == (first not in loras)
    blend.set_row_weights([(second, [1.0], [1.0])])
    blend.apply([])
    assert "zork" in family.pipeline.tokenizer.get_added_vocab()
    blend.clear()
    assert state(family) == was


def test_the_end_of_the_text_is_found_where_its_number_is_said_wrongly() -> None:
    """OpenAI's config says 2: the highest token counts, which must not be the new word."""
    family = open_tiny("sdxl")
    reader = family.text_encoders["te2"].text_model
    reader.eos_token_id = 2
    blend, before = Blend(family), family.encode_prompts(["a cat"]).tensors["pooled"]
    blend.apply([(bundle("sdxl", "zibo"), 1.0, 1.0)])
    tokens = family.pipeline.tokenizer_2("zibo", padding="max_length", return_tensors="pt")
    found = reader(tokens.input_ids)
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 2])  # start, zibo, end
    blend.clear()
    assert reader.eos_token_id == 2
    assert torch.equal(family.encode_prompts(["a cat"]).tensors["pooled"], before)


def test_words_that_cannot_be_used_are_told() -> None:
    family = open_tiny("sd1")
    blend = Blend(family)
    one, other = bundle("sd1", "zibo", "a"), bundle("sd1", "zibo", seed=1)
    blend.apply([(one, 1.0, 1.0), (other, 1.0, 1.0)])
    assert len(blend.notes) == 2
    assert "'a' is not used: the model has one" in blend.notes[0]
    assert "two LoRAs bring the word 'zibo'" in blend.notes[1]
    assert match_layers(bundle("sdxl", "zibo"), family).unmatched == ("bundle_emb.zibo",)
    blend.clear()


def test_a_lora_at_weight_zero_brings_no_words() -> None:
    family = open_tiny("sd1")
    was, blend = state(family), Blend(family)
    blend.apply([(bundle("sd1", "zibo"), 0.0, 0.0)])
    assert state(family) == was
