"""What a model family is: everything that differs between base models, behind one class.

Training, generating and LoRA files are written against this page only. A new family is a subclass
in a file of its own, a row of `families.FAMILIES` and a row of `lora.bases.BASES`.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import diffusers
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from sdlora.architectures import BASES
from sdlora.errors import ModelError
from sdlora.lora.format.keys import text_name
from sdlora.lora.format.name_map import Slot, build_name_map
from sdlora.models.text_encoding import ClipEncoder, ClipLayer, TextEncodeOptions
from sdlora.noise_schedule import DDPM
from sdlora.prompt.chunks import Chunk
from sdlora.settings.layer_groups import TEXT_ENCODER, WIDER

# Layers of the UNet that an adapter can be put on, by the end of their path. `conv` are the
# convolutions of kohya's LoCon (sd-scripts, networks/lora.py).
TARGETS = {
    "self_attention": r"attentions\.\d+\..*\.attn1\.(to_q|to_k|to_v|to_out\.0)",
    "cross_attention": r"attentions\.\d+\..*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": r"attentions\.\d+\.(proj_in|proj_out)",  # what stands around the two
    "feed_forward": r"attentions\.\d+\..*\.ff\.net\.(0\.proj|2)",
    "conv": r"resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv",
}
# A scheduler that begins from noise alone (arXiv:2305.08891, sections 3.1 and 3.3)
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TEXT_TARGETS = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"
PLAIN = TextEncodeOptions()
# What a LoRA file can change, of any kind
CHANGEABLE = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm


class Conditioned(Protocol):
    """What `predict` needs of a batch: batch is dim 0 of every value."""

    @property
    def cond(self) -> Mapping[str, Tensor]:
        """What `encode_prompts` gave."""

    @property
    def sizes(self) -> Tensor:
        """(B,6): original height and width, top and left of the cut, height and width, pixels."""


class Family(ABC):
    """An open base model: its stock pipeline, frozen, and what is special about it.

    B pictures or prompts, H x W pixels, h x w latent cells of C channels, t in 0..1000.
    """

    pipeline_class: ClassVar[type[diffusers.DiffusionPipeline]]
    text_parts: ClassVar[dict[str, str]]  # kohya's name of a text encoder -> the pipeline's
    no_parts: ClassVar[dict[str, Any]]  # what of the pipeline is not loaded
    caption_clip_skip: int = 1  # the layer that captions are read from, counted from the last
    has_pooled: ClassVar[bool] = False  # whether `network` reads a text's summary as well

    def __init__(self, name: str, pipeline: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.title = name, BASES[name].title
        self.device, self.dtype = device, dtype
        self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.denoiser: Any = pipeline.unet
        self.vae: Any = pipeline.vae
        self.text_encoders: dict[str, Any] = {
            key: getattr(pipeline, attribute) for key, attribute in self.text_parts.items()
        }
        for part in (self.vae, *self.parts.values()):
            part.requires_grad_(False).eval()
        self.noise = DDPM.of(pipeline.scheduler.config).to(device)
        self.resolution = int(self.denoiser.config.sample_size * pipeline.vae_scale_factor)
        self.layers: dict[str, dict[str, Any]] = {  # part -> path in it -> what a LoRA can change
            part: {path: its for path, its in model.named_modules() if isinstance(its, CHANGEABLE)}
            for part, model in self.parts.items()
        }
        self._module_names = dict(self._name_modules())
        self._resting: list[Any] = []  # parts that lie in main memory

    @classmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> Self:
        """Open a diffusers folder that has passed `detect_family`; safetensors only.

        ModelError when a part of it is missing or damaged.
        """
        diffusers.logging.set_verbosity_error()
        diffusers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            pipeline = cls.pipeline_class.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, **cls.no_parts
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                "the model in {folder} cannot be opened: {why}", folder=folder, why=error
            ) from None
        return cls(name, pipeline, device, dtype)

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the network reads beside the picture; gradients reach the text encoders."""

    @abstractmethod
    def network(
        self, noisy: Tensor, t: Tensor, cond: Mapping[str, Tensor], sizes: Tensor
    ) -> Tensor:
        """The network's answer (B,C,h,w) to `noisy` (B,C,h,w) at `t` (B,) or (), as it stands.

        `cond` as `encode_prompts` gives it, `sizes` (B,6): see Conditioned.
        """

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """All that a LoRA can change without dropout; then as it was, for a training may go on."""
        parts = list(self.parts.values())
        learning = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for part, was in zip(parts, learning, strict=True):
                part.train(was)

    def begin_from_noise(self) -> None:
        """From now on pictures begin from noise alone, whichever sampler makes them."""
        self.pipeline.scheduler.register_to_config(**ZERO_TERMINAL_SNR)

    def predict(self, noisy: Tensor, t: Tensor, batch: Conditioned) -> Tensor:
        """`network` in training: inputs brought to the model, float32 adapters on half the bits."""
        cond = {key: value.to(self.device, self.dtype) for key, value in batch.cond.items()}
        sizes = batch.sizes.to(self.device, self.dtype)
        with self.autocast():
            return self.network(noisy.to(self.device, self.dtype), t.to(self.device), cond, sizes)

    def read_text(self, text: str, manner: TextEncodeOptions = PLAIN) -> dict[str, Tensor]:
        """What `network` reads of one text of any length, emphasis and BREAK in it, as
        `encode_prompts` would give it but without a batch: `context` (77n,D) for n chunks, and
        `pooled` (D2), the last encoder's summary of the first, where the family has that."""
        return self._read([reader.chunks(text) for reader in self.readers()], manner)

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`encode_prompts` of captions of any length, no sign in which means emphasis: n chunks for
        the longest, `context` (B,77n,D), and empty ones after the others."""
        if self.caption_clip_skip == 1 and not any(map(self.cut_text, captions)):
            return self.encode_prompts(captions)
        readers = self.readers()
        texts = [[reader.literal(caption) for reader in readers] for caption in captions]
        most = max(len(chunks) for text in texts for chunks in text)
        with self.autocast():
            manner = TextEncodeOptions(clip_skip=self.caption_clip_skip)
            read = [self._read(text, manner, most) for text in texts]
        return {name: torch.stack([one[name] for one in read]) for name in read[0]}

    def _read(
        self, chunks: Sequence[list[Chunk]], manner: TextEncodeOptions, least: int = 1
    ) -> dict[str, Tensor]:
        """`read_text` of each encoder's chunks, `least` of them at least."""
        # a word that only one encoder has been brought may make more chunks there
        most = max(least, *map(len, chunks))
        read = [
            reader.read([*its, *[[]] * (most - len(its))], manner)
            for reader, its in zip(self.readers(), chunks, strict=True)
        ]
        context = torch.cat([states for states, _ in read], -1)
        return (
            {"context": context, "pooled": read[-1][1]} if self.has_pooled else {"context": context}
        )

    def read_nothing(self, manner: TextEncodeOptions = PLAIN) -> dict[str, Tensor]:
        """What an empty negative prompt is to `network`."""
        return self.read_text("", manner)

    @property
    def text_layers(self) -> ClipLayer:
        """Which layer of the text encoders `network` reads."""
        return ClipLayer()

    def readers(self) -> list[ClipEncoder]:
        """The text encoders, with the tokenizers that they have now."""
        tokenizers = [
            getattr(self.pipeline, name.replace("text_encoder", "tokenizer"))
            for name in self.text_parts.values()
        ]
        pairs = zip(self.text_encoders.values(), tokenizers, strict=True)
        return [ClipEncoder(model, tokenizer, self.text_layers) for model, tokenizer in pairs]

    @property
    def deepest_skip(self) -> int:
        """The highest clip skip that still changes anything."""
        first, its = next(iter(self.text_encoders.values())), self.text_layers
        return its.most(first) + its.gone

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (B,C,h,w) as B pictures."""
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        images: list[Image.Image] = self.pipeline.image_processor.postprocess(pixels, "pil")
        return images

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (B,3,H,W) in -1..1 to scaled latents (B,C,h,w): the posterior's mode.

        In float32 where the model says that its VAE overflows in fp16.
        """
        with self.careful_vae():
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
            return posterior.mode() * self.vae.config.scaling_factor

    @contextlib.contextmanager
    def careful_vae(self) -> Iterator[None]:
        """The VAE in float32 where it says that it overflows in fp16."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(torch.float16)

    def rest(self, busy: Iterable[str]) -> None:
        """Leave the VAE and the text encoders that are not `busy` in main memory, so that the
        device has their room, until `whole` needs them. Where main memory is the device: nothing.
        """
        self.wake()
        idle = {key: its for key, its in self.text_encoders.items() if key not in set(busy)}
        self._resting = [] if self.device.type == "cpu" else [self.vae, *idle.values()]
        self._move(torch.device("cpu"))

    def wake(self) -> None:
        """All parts on the device again, to stay there."""
        self._move(self.device)
        self._resting = []

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """All parts on the device, as drawing needs them; those that rested rest again after it."""
        self._move(self.device)
        try:
            yield
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for part in self._resting:
            part.to(device)
        if self._resting and torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def parts(self) -> dict[str, Any]:
        """The modules a LoRA can change: `denoiser`, and the text encoders by kohya's names."""
        return {"denoiser": self.denoiser, **self.text_encoders}

    def module_names(self) -> Mapping[str, tuple[str, str]]:
        """Canonical LoRA layer name -> (part, path in it), of linear layers and convolutions."""
        return self._module_names

    @cached_property
    def vocabulary(self) -> Mapping[str, tuple[Slot, ...]]:
        """Every layer name that a LoRA file may use for this model -> the modules it changes."""
        return build_name_map(self.name, self.layers)

    def lora_targets(
        self, groups: Iterable[str], text_encoder: bool = False
    ) -> dict[str, dict[str, list[str]]]:
        """Part -> group of TARGETS, or text_encoder -> paths of the layers to put an adapter on, in
        their order. Of a group that is part of another, that one's name is enough."""
        asked = set(groups)
        narrow = [group for group in TARGETS if {group, WIDER.get(group)} & asked]
        wanted = {"denoiser": {group: TARGETS[group] for group in narrow}}
        if text_encoder:
            wanted |= {key: {TEXT_ENCODER: TEXT_TARGETS} for key in self.text_encoders}
        paths: dict[str, dict[str, list[str]]] = {}
        for part, patterns in wanted.items():
            every = [path for its, path in self._module_names.values() if its == part]
            paths[part] = {
                group: [path for path in every if re.search(rf"\b({pattern})$", path)]
                for group, pattern in patterns.items()
            }
        return paths

    def cut_text(self, prompt: str) -> str:
        """The end of a prompt that `encode_prompts` does not see, for it reads 77 tokens."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        # the last place is the end mark's
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 1 : -1])).strip()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Lets float32 adapters learn on a base model held in half the bits."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _name_modules(self) -> Iterable[tuple[str, tuple[str, str]]]:
        for part, layers in self.layers.items():
            for path, module in layers.items():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    flat = path.replace(".", "_")
                    is_text = part in self.text_encoders
                    name = text_name(f"lora_{part}_", flat) if is_text else f"lora_unet_{flat}"
                    yield name, (part, path)
