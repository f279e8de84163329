"""How files name their layers: every format's keys, and flat names made dotted again."""

import pytest

from architectures import ARCHITECTURES, read_keys
from sdlora.errors import LoraFileError
from sdlora.lora.format.identify import identify_layers
from sdlora.lora.format.keys import (
    GRAMMARS,
    canonical,
    dotted,
    embedding_key,
    embeddings_of,
    text_name,
)

UNET = "lora_unet_mid_block_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
FLUX = "lora_unet_single_transformer_blocks_0_attn_to_q"
T5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
# format -> key -> (layer name, role)
KEYS: dict[str, dict[str, tuple[str, str]]] = {
    "kohya": {
        f"{UNET}.lora_down.weight": (UNET, "down"),
        f"{UNET}.lora_up.weight": (UNET, "up"),
        f"{UNET}.lora_mid.weight": (UNET, "mid"),
        f"{UNET}.alpha": (UNET, "alpha"),
        f"{UNET}.dora_scale": (UNET, "dora_scale"),
        f"{UNET}.hada_w1_a": (UNET, "hada_w1_a"),
        f"{UNET}.lokr_t2": (UNET, "lokr_t2"),
        f"{UNET}.a1.weight": (UNET, "a1"),
        f"{UNET}.bm.weight": (UNET, "bm"),
        f"{UNET}.weight": (UNET, "weight"),
        f"{UNET}.on_input": (UNET, "on_input"),
        f"{UNET}.oft_blocks": (UNET, "oft_blocks"),
        f"{UNET}.diff_b": (UNET, "diff_b"),
        f"{UNET}.w_norm": (UNET, "w_norm"),
        f"{T5}.lora_down.weight": (T5, "down"),
        # the path is the file's own
        "lora_unet_input_blocks_4_1_proj_in.alpha": (
            "lora_unet_input_blocks_4_1_proj_in", "alpha",
        ),
        # OneTrainer and LyCORIS' wrapper
        "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_A.weight": (FLUX, "down"),
        "lycoris_single_transformer_blocks_0_attn_to_q.lokr_w1": (FLUX, "lokr_w1"),
        "lycoris_text_model_encoder_layers_0_self_attn_q_proj.alpha": (TEXT, "alpha"),
    },
    "diffusers": {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": (UNET, "down"),
        "unet.mid_block.attentions.0.proj_in.lora_B.default.weight": (UNET, "up"),
        "unet.mid_block.attentions.0.proj_in.lora.up.weight": (UNET, "up"),
        "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector": (UNET, "magnitude"),
        "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector.default.weight": (
            UNET, "magnitude",
        ),
        "base_model.model.unet.mid_block.attentions.0.proj_in.hada_w2_b": (UNET, "hada_w2_b"),
        "unet.mid_block.x.attn1.processor.to_out_lora.down.weight": (
            "lora_unet_mid_block_x_attn1_to_out_0", "down",
        ),
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (FLUX, "down"),
        "transformer.single_transformer_blocks.0.attn.to_q.alpha": (FLUX, "alpha"),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
            TEXT, "up",
        ),
        "text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight": (TEXT, "down"),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": (TEXT, "up"),
    },
    "ComfyUI": {
        "diffusion_model.single_blocks.0.linear1.lora_A.weight": (
            "lora_unet_single_blocks_0_linear1", "down",
        ),
        "diffusion_model.input_blocks.4.1.proj_in.lora_up.weight": (
            "lora_unet_input_blocks_4_1_proj_in", "up",
        ),
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight": (
            T5, "up",
        ),
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.diff": (
            "lora_te2_text_model_encoder_layers_0_mlp_fc1", "diff",
        ),
    },
    "PEFT": {
        "base_model.model.single_transformer_blocks.0.attn.to_q.lora_A.weight": (FLUX, "down"),
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": (TEXT, "up"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("form", "key"), [(form, key) for form in KEYS for key in KEYS[form]])
def test_keys(form: str, key: str) -> None:
    assert canonical([key]) == {key: KEYS[form][key]}


def test_every_grammar_has_keys() -> None:
    assert KEYS.keys() == {grammar.name for grammar in GRAMMARS}


def test_first_of_several_text_encoders_is_te1() -> None:
    keys = [f"text_encoder{n}.encoder.layers.0.mlp.fc1.lora_A.weight" for n in ("", "_2")]
    names = [name for name, _ in canonical(keys).values()]
    assert [name.partition("_text")[0] for name in names] == ["lora_te1", "lora_te2"]


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "lora_unet_", "lora_unet_.alpha", "unet.lora_A.weight", "x.lora_A.weight",
     "lora_unet_a.b.alpha", "unet.x.weight", "transformer.proj_out.weight", "lora_unet_x.lora_down",
     "unet..alpha", "lora_unet_x.alpha.alpha", "lora_unet_x"],
)  # fmt: skip
def test_what_is_no_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(LoraFileError) as refused:
        canonical([key])
    assert refused.value.code == "unknown_keys"


def test_a_layer_in_two_formats_stands_twice() -> None:
    shapes = {f"{UNET}.lora_down.weight": (2, 6), f"{UNET}.lora_up.weight": (5, 2)}
    other = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (2, 6)}
    with pytest.raises(LoraFileError, match="occurs twice") as refused:
        identify_layers(shapes | other)
    assert refused.value.code == "stands_twice"


def test_embeddings() -> None:
    for name in ("cat", "a.b", "string_to_param.*"):
        for encoder in ("", "clip_l", "clip_g"):
            key = embedding_key(name, encoder)
            assert embeddings_of([key, f"{UNET}.alpha"]) == {key: (name, encoder)}
    assert not embeddings_of(["bundle_emb.cat.pickle", "bundle_emb.clip_l"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flat_names_are_dotted_again(architecture: str) -> None:
    for paths in read_keys(architecture).values():
        assert paths
        for path in paths:
            assert dotted(path.replace(".", "_")) == path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_of_a_real_model_is_read_as_diffusers_writes_it(architecture: str) -> None:
    parts = {"denoiser": "unet", "te": "text_encoder", "te1": "text_encoder",
             "te2": "text_encoder_2", "te3": "text_encoder_3"}  # fmt: skip
    keys, expected = [], set()
    for part, paths in read_keys(architecture).items():
        for path in paths:
            keys.append(f"{parts[part]}.{path}.lora_A.weight")
            flat = path.replace(".", "_")
            expected.add(
                f"lora_unet_{flat}" if part == "denoiser" else text_name(f"lora_{part}_", flat)
            )
    assert {name for name, _ in canonical(keys).values()} == expected
