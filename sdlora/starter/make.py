"""The starter model's whole recipe: `python -m sdlora.starter.make --work DIR`.

Seeded, and resumable at any moment: run it again and it goes on. Stages, in order: words (tokenizer
and text encoder), pictures (autoencoder), denoiser, then the decoder alone until it is sharp, the
upscaler, then the four LoRAs that ship. `--export` writes the model as it is now.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from sdlora.starter.make_loop import DEVICE, Plan, count
from sdlora.starter.make_text import new_tokenizer, train_text_encoder
from sdlora.starter.make_unet import new_scheduler, train_unet
from sdlora.starter.make_upscaler import train_upscaler
from sdlora.starter.make_vae import train_decoder, train_vae
from sdlora.upscalers.compact import CompactUpscaler, read_compact, write_compact
from sdlora.upscalers.files import FOLDER

MODEL = Path(__file__).parent / "model"
UPSCALER = Path(FOLDER) / "2x_sdlora_starter.safetensors"  # below the model
PLANS: dict[str, Plan] = {
    "text": Plan(steps=500, learning_rate=1e-3, decay=150),
    "vae": Plan(steps=3200, learning_rate=1.5e-3, decay=800),
    "unet": Plan(steps=40_000, learning_rate=1e-3, decay=8_000, ema=0.9995),
    "decoder": Plan(steps=10_000, learning_rate=1e-3, decay=2_500),
    "upscaler": Plan(steps=7_000, learning_rate=1e-3, decay=2_500, ema=0.999),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a stage's length can be changed, its decay in proportion."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for state and caches")
    parser.add_argument("--output", type=Path, default=MODEL, help="where the model is written")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--warm", action="store_true", help="begin from the weights that ship")
    parser.add_argument("--export", action="store_true", help="train nothing, write what there is")
    for stage, plan in PLANS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=plan.steps, metavar="N")
        parser.add_argument(f"--{stage}-decay", type=int, default=plan.decay, metavar="N")
    return parser.parse_args(arguments)


def plans_of(options: argparse.Namespace) -> dict[str, Plan]:
    """The plan of each stage; with --export nothing is left to do."""
    chosen = {}
    for stage, plan in PLANS.items():
        steps = 0 if options.export else getattr(options, f"{stage}_steps")
        chosen[stage] = replace(plan, steps=steps, decay=getattr(options, f"{stage}_decay"))
    return chosen


def make(
    work: Path, plans: dict[str, Plan], warm: bool = False
) -> tuple[StableDiffusionPipeline, CompactUpscaler | None]:
    """Train what is not trained yet and put it together; `warm`: from the weights that ship.

    Returns the model and its upscaler, None where that has neither been trained nor is warm."""
    work.mkdir(parents=True, exist_ok=True)
    shipped = StableDiffusionPipeline.from_pretrained(MODEL) if warm else None
    if shipped and not (work / "tokenizer").exists():
        shipped.tokenizer.save_pretrained(work / "tokenizer")
    tokenizer = new_tokenizer(work / "tokenizer")
    text_encoder = train_text_encoder(
        work, tokenizer, plans["text"], shipped and shipped.text_encoder
    ).eval()
    vae = train_vae(work, plans["vae"], shipped and shipped.vae).eval()
    unet = train_unet(
        work, vae, text_encoder, tokenizer, plans["unet"], start=shipped and shipped.unet
    ).eval()
    vae = train_decoder(work, plans["decoder"], vae).eval()
    start = read_compact(MODEL / UPSCALER) if warm else None
    model = assemble(vae, text_encoder, tokenizer, unet)
    return model, train_upscaler(work, plans["upscaler"], model, start)


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """A stock Stable Diffusion 1 pipeline of the four parts."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    """Run the recipe and write the model in half precision."""
    options = parse()
    torch.set_num_threads(options.threads)
    pipeline, upscaler = make(options.work, plans_of(options), options.warm)
    parts = [pipeline.vae, pipeline.text_encoder, pipeline.unet]
    for part in parts:
        part.to("cpu", torch.float16)
    pipeline.save_pretrained(options.output, safe_serialization=True)
    if upscaler:
        write_compact(upscaler, options.output / UPSCALER, torch.float16)
    for path in options.output.rglob("*.safetensors"):
        path.chmod(0o644)
    written = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{count(parts) / 1e6:.2f} M parameters, {written / 2**20:.1f} MiB, made on {DEVICE}")


if __name__ == "__main__":
    main()
