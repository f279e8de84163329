"""Tiny SD 3 and FLUX pipelines: stock classes, random weights, made offline."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny import LATENT, text_encoder, tokenizer, vae

CHANNELS, TEXT, POOLED, WORDS, HEADS, HEAD = 4, 32, 24, 5, 2, 16
SD3_POOLED = 16 + 16


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 without its T5; two joint blocks, the first with a second attention."""
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=LATENT, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS,
            num_layers=2, attention_head_dim=HEAD, num_attention_heads=HEADS,
            joint_attention_dim=TEXT, caption_projection_dim=HEAD * HEADS,
            pooled_projection_dim=SD3_POOLED, pos_embed_max_size=LATENT, dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(CHANNELS, shift_factor=0.06),
        text_encoder=text_encoder(16, CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(16, CLIPTextModelWithProjection, "gelu"),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip


def t5() -> T5EncoderModel:
    """A T5 encoder of one layer, for a vocabulary of letters."""
    return T5EncoderModel(
        T5Config(
            vocab_size=300, d_model=TEXT, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip


def letters() -> T5Tokenizer:
    """T5's tokenizer with a vocabulary of printable letters: a token for each."""
    words = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=512)


def flux() -> FluxPipeline:
    """FLUX.1; a double block and two single ones."""
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=CHANNELS * 4, num_layers=1, num_single_layers=2,
            attention_head_dim=HEAD, num_attention_heads=HEADS, joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(CHANNELS, shift_factor=0.06),
        text_encoder=text_encoder(POOLED),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=letters(),
    )  # fmt: skip


MAKERS = {"sd3": sd3, "flux": flux}


def make(name: str) -> StableDiffusion3Pipeline | FluxPipeline:
    """A fresh pipeline of "sd3" or "flux", the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return MAKERS[name]()


def sd3_answer(model: SD3Transformer2DModel, rng: torch.Generator) -> torch.Tensor:
    """What the transformer makes of random inputs."""
    return model(
        hidden_states=torch.randn(1, CHANNELS, LATENT, LATENT, generator=rng),
        encoder_hidden_states=torch.randn(1, WORDS, TEXT, generator=rng),
        pooled_projections=torch.randn(1, SD3_POOLED, generator=rng),
        timestep=torch.tensor([500.0]),
    ).sample


def flux_answer(model: FluxTransformer2DModel, rng: torch.Generator) -> torch.Tensor:
    """What the transformer makes of random inputs."""
    side = LATENT // 2
    places = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * 2, indexing="ij"), -1)
    return model(
        hidden_states=torch.randn(1, side * side, CHANNELS * 4, generator=rng),
        encoder_hidden_states=torch.randn(1, WORDS, TEXT, generator=rng),
        pooled_projections=torch.randn(1, POOLED, generator=rng),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=torch.nn.functional.pad(places.reshape(-1, 2), (1, 0)),
        txt_ids=torch.zeros(WORDS, 3),
    ).sample
