"""The family seam: everything that differs between base models, behind one class.

Training, generating and LoRA files are written against this page only. A new family is a subclass
in a file of its own and a row of `architectures.FAMILIES`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from diffusers.models.normalization import RMSNorm
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from sdlora.architectures import FAMILIES, FamilySpec
from sdlora.cache import digest_of
from sdlora.errors import DeviceError, ModelError
from sdlora.lora.format.keys import text_name
from sdlora.lora.format.name_map import Slot, build_name_map
from sdlora.messages import Setting
from sdlora.models.block_streaming import BlockStreaming
from sdlora.models.frozen_weights import freeze_linears, held_weights
from sdlora.models.im2col_convolution import use_im2col
from sdlora.models.protocols import Pipeline, Tokenizer, Vae
from sdlora.models.stock_sampler import StockSampler
from sdlora.models.text_encoding import TextEncodeOptions
from sdlora.noise_schedule import NoiseSchedule
from sdlora.prompt.emphasis import parse_emphasis
from sdlora.settings.layer_groups import TEXT_ENCODER, WIDER
from sdlora.settings.model import BasePrecision
from sdlora.upscalers.files import FOLDER

PLAIN = TextEncodeOptions()
# Modules that a LoRA file can change, of any type
CHANGEABLE = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | RMSNorm


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and notes out of the terminal."""
    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded texts of a batch, as the denoiser reads them beside the latents.

    Opaque outside the families: tensors by name, with the batch in dim 0 of each. `context`
    (B,n,D), the sequence that attention reads, is in all of them.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["context"])

    @property
    def length(self) -> int:
        """Tokens; texts of one length go through the denoiser together."""
        return self.tensors["context"].shape[1]

    def __getitem__(self, rows: slice) -> Conditioning:
        """Return some of the rows."""
        return self.mapped(lambda tensor: tensor[rows])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Conditioning:
        """Return the same on `device`, copied without waiting for it."""
        return self.mapped(lambda tensor: tensor.to(device, dtype, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return it with every tensor changed."""
        return Conditioning({name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class NetworkInputs:
    """Inputs of a picture besides its text: `extra_channels` (B,K,h,w) of inpainting models, and
    the residuals that a ControlNet adds inside the denoiser (arXiv:2302.05543, sec. 3.1)."""

    extra_channels: Tensor | None = None
    down_residuals: tuple[Tensor, ...] = ()
    mid_residual: Tensor | None = None


class ModelFamily(ABC):
    """An open base model: its stock pipeline, frozen, and what is special about it.

    B pictures or prompts, H x W pixels, h x w latent cells of C channels, t in 0..1000.
    """

    text_encoder_names: ClassVar[Mapping[str, str]]  # kohya's name -> the pipeline's
    skip_components: ClassVar[Mapping[str, Any]]  # of the pipeline, not loaded
    denoiser_name: ClassVar[str] = "transformer"
    caption_clip_skip: int = 1  # the layer that captions are read from, counted from the last
    embeds_guidance: bool = False  # the denoiser reads the guidance scale itself
    upscaler: Path | None = None  # file of the upscaler that comes with the model
    dequantized_from: str = ""  # ggml's word for the format of a GGUF file's weights

    def __init__(
        self, name: str, pipeline: Pipeline, device: torch.device, dtype: torch.dtype,
        stream_blocks: float = 0.0,
    ) -> None:  # fmt: skip
        self.spec: FamilySpec = FAMILIES[name]
        self.name, self.title = name, self.spec.title
        self.device, self.dtype = device, dtype
        self.denoiser: Any = getattr(pipeline, self.denoiser_name)
        self.denoiser.requires_grad_(False)
        if device.type == "cpu":
            use_im2col(self.denoiser)
        self.streaming: BlockStreaming | None = None
        if stream_blocks:
            self.streaming = BlockStreaming(self.denoiser, device, stream_blocks)
        with self.streaming.left_in_memory() if self.streaming else contextlib.nullcontext():
            self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.vae: Vae = pipeline.vae
        self.text_encoders: dict[str, Any] = {
            key: encoder
            for key, attribute in self.text_encoder_names.items()
            if (encoder := getattr(pipeline, attribute)) is not None
        }
        for part in (self.vae, *self.components.values()):
            part.requires_grad_(False).eval()
        self.cell = int(pipeline.vae_scale_factor)  # pixels along a side of a latent cell
        self.noise: NoiseSchedule = self.noise_schedule().to(device)
        self.adaptable_layers: dict[
            str, dict[str, Any]
        ] = {  # part -> path in it -> what a LoRA can change
            part: {path: m for path, m in model.named_modules() if isinstance(m, CHANGEABLE)}
            for part, model in self.components.items()
        }
        self._module_names = dict(self._name_modules())
        self._offloaded: list[Any] = []  # parts that lie in main memory

    @classmethod
    def load_pipeline(
        cls, name: str, folder: Path, dtype: torch.dtype, base_precision: BasePrecision = "full"
    ) -> Pipeline:
        """Load the pipeline in a diffusers folder that has passed `detect_family`; safetensors
        only. The denoiser comes first, and is made small before the rest is loaded.

        ModelError when a part of it is missing or damaged.
        """
        quiet_libraries()
        pipeline_class = getattr(diffusers, FAMILIES[name].pipeline_class)
        options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
        parts = cls.skipped(folder)
        try:
            if base_precision != "full":
                _, kind = pipeline_class.load_config(folder)[cls.denoiser_name]
                denoiser = getattr(diffusers, kind).from_pretrained(
                    folder / cls.denoiser_name, **options
                )
                freeze_linears(denoiser, base_precision)
                parts[cls.denoiser_name] = denoiser
            pipeline: Pipeline = pipeline_class.from_pretrained(folder, **options, **parts)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                "the model in {folder} cannot be opened: {why}", folder=folder, why=error
            ) from None
        return pipeline

    @classmethod
    def skipped(cls, folder: Path) -> dict[str, Any]:
        """Return what of the pipeline in `folder` is not loaded, as `from_pretrained` takes it."""
        return dict(cls.skip_components)

    # What a family is

    @property
    def extra_channels(self) -> int:
        """Channels that the denoiser reads beside the latents: mask and picture of inpainting."""
        return 0

    @abstractmethod
    def noise_schedule(self) -> NoiseSchedule:
        """Return the schedule that the model was trained on."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Pixels along a side of the pictures that the model was made for."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C of the latents that `predict` takes."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode texts as the stock pipeline does; gradients reach the text encoders."""

    @abstractmethod
    def predict(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        guidance: float | None = None,
        extras: NetworkInputs | None = None,
    ) -> Tensor:
        """Return the denoiser's prediction (B,C,h,w) for latents `x` (B,C,h,w) at `t` (B,) or ().

        `guidance` is read by models that embed it; None in training.
        """

    # Texts

    def encode_prompt(self, text: str, options: TextEncodeOptions = PLAIN) -> Conditioning:
        """Encode one text of a prompt (B = 1). Where the row says so, emphasis has no meaning to
        the text encoders, and its signs are taken away."""
        return self.encode_prompts(["".join(part for part, _ in parse_emphasis(text))])

    def encode_empty_prompt(self, options: TextEncodeOptions = PLAIN) -> Conditioning:
        """Encode what an empty negative prompt is (B = 1)."""
        return self.encode_prompt("", options)

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions of any length, no sign in which means emphasis, as one batch."""
        return self.encode_prompts(captions)

    def unread_text(self, text: str) -> str:
        """Return the end of a text that the encoders do not see; '' when they read all of it."""
        return ""

    @property
    def max_clip_skip(self) -> int:
        """The highest clip skip that still changes anything."""
        return 1

    def pad(
        self, conditioning: Conditioning, length: int, empty: Callable[[], Conditioning]
    ) -> Conditioning:
        """Return it `length` tokens long; `empty` encodes no text in the same way, for padding."""
        if conditioning.length != length:
            raise ModelError("texts of {title} are all of one length", title=self.title)
        return conditioning

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Return texts of one length as one batch, see `pad`."""
        names = conditionings[0].tensors
        return Conditioning(
            {name: torch.cat([c.tensors[name] for c in conditionings]) for name in names}
        )

    def condition_on_size(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:
        """Return it with the pictures' sizes, for models that read them: `sizes` (B,6) or (1,6) of
        original height and width, top and left of the crop, height and width, pixels."""
        return conditioning

    # Latents

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (w, h) of a picture's latents, in whole cells that the denoiser takes."""
        step = self.spec.size_multiple
        w, h = (side // step * step // self.cell for side in (width, height))
        return w, h

    def initial_latents(
        self, size: tuple[int, int], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Return unit noise (B,C,h,w) for pictures of `size` = (width, height) pixels, a row from
        each generator."""
        w, h = self.latent_size(*size)
        shape = (len(generators), self.latent_channels, h, w)
        noise: Tensor = randn_tensor(
            shape, generator=list(generators), device=self.device, dtype=self.dtype
        )
        return noise

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B,3,H,W) in -1..1 as latents: the posterior's mode, scaled.

        In float32 where the model says that its VAE overflows in fp16.
        """
        with self.fp32_vae():
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
            mode: Tensor = posterior.mode()
            if shift := getattr(self.vae.config, "shift_factor", None):
                mode = mode - shift
            latents: Tensor = mode * self.vae.config.scaling_factor
            return latents

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Decode scaled latents (B,C,h,w) as B pictures."""
        latents = latents / self.vae.config.scaling_factor
        if shift := getattr(self.vae.config, "shift_factor", None):
            latents = latents + shift
        pixels = self.vae.decode(latents, return_dict=False)[0]
        images: list[Image.Image] = self.pipeline.image_processor.postprocess(pixels, "pil")
        return images

    @contextlib.contextmanager
    def fp32_vae(self) -> Iterator[None]:
        """Hold the VAE in float32 where it says that it overflows in fp16."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(torch.float16)

    # Sampling

    def sampler(
        self,
        scheduler_class: Any,
        options: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],
        *,
        zero_terminal_snr: bool = False,
    ) -> StockSampler:
        """Return a stock scheduler of this model's, ready for one pass of `steps` steps over
        pictures of `size` = (width, height); from noise alone with `zero_terminal_snr`."""
        more = ZERO_TERMINAL_SNR if zero_terminal_snr else {}
        scheduler = scheduler_class.from_config(self.pipeline.scheduler.config, **options, **more)
        return StockSampler(scheduler, steps, self.device, {})

    def use_zero_terminal_snr(self) -> None:
        """From now on begin pictures from noise alone, whichever sampler makes them."""
        self.pipeline.scheduler.register_to_config(**ZERO_TERMINAL_SNR)

    # Device

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Let float32 adapters learn on a base model held in half precision."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Switch dropout off in all that a LoRA can change; then back, for a training may go on."""
        parts = list(self.components.values())
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.train(mode)

    def offload(self, busy: Iterable[str]) -> None:
        """Leave the VAE and the text encoders that are not `busy` in main memory, so that the
        device has their room, until `on_device`. Where main memory is the device: do nothing."""
        self.reload()
        idle = [model for key, model in self.text_encoders.items() if key not in set(busy)]
        self._offloaded = [] if self.device.type == "cpu" else [self.vae, *idle]
        self._move(torch.device("cpu"))

    def reload(self) -> None:
        """Bring all parts to the device again, to stay there."""
        self._move(self.device)
        self._offloaded = []

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Hold all parts on the device, as making pictures needs them; afterwards offload again."""
        self._move(self.device)
        try:
            yield
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for part in self._offloaded:
            part.to(device)
        if self._offloaded and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations twice in place of keeping them; streamed blocks always do."""
        if not self.streaming:
            self.denoiser.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.activation_checkpointing_enable()

    def stream_blocks(self, share: float) -> None:
        """Put the weights of a share of the denoiser's blocks into main memory from now on, from
        where they are copied while they are needed; nothing where that is done already."""
        if not self.streaming:
            self.denoiser.disable_gradient_checkpointing()
            self.streaming = BlockStreaming(self.denoiser, self.device, share)

    def compile_blocks(self, backend: str) -> None:
        """Compile the denoiser's repeated blocks, each kind of them once (docs.pytorch.org,
        regional compilation). DeviceError: they are streamed."""
        if self.streaming:
            raise DeviceError(
                "{compile} and {stream} do not go together; choose one of them",
                compile=Setting("compile_blocks"), stream=Setting("stream_blocks"),
            )  # fmt: skip
        self.denoiser.compile_repeated_blocks(backend=backend)

    def discard_compiled_blocks(self) -> None:
        """Run the denoiser's blocks uncompiled again."""
        for module in self.denoiser.modules():
            module._compiled_call_impl = None

    @property
    def details(self) -> dict[str, str]:
        """Facts to show when a job begins: the model's title, and how its weights were stored, how
        and where they are held, if that is not as usual."""
        facts = {"model": self.title}
        if self.dequantized_from:
            number_format = str(self.dtype).removeprefix("torch.")
            facts["weights"] = f"{self.dequantized_from}, dequantised to {number_format}"
        if held := held_weights(self.denoiser):
            facts["frozen weights"] = str(held)
        if self.streaming:
            facts["streamed blocks"] = str(self.streaming)
        return facts

    def is_streamed(self, part: str, path: str) -> bool:
        """Return True for a layer whose weight is streamed and can hold no change."""
        layer = self.adaptable_layers[part].get(path)
        return bool(self.streaming and layer is not None and self.streaming.holds(layer))

    def fetch_weight(self, part: str, path: str) -> None:
        """Have the weight of a streamed layer on the device for now."""
        if self.streaming and self.is_streamed(part, path):
            self.streaming.fetch(self.adaptable_layers[part][path])

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Hold all weights in another number format, for good."""
        self.pipeline.to(dtype=dtype)

    def save(self, folder: Path) -> None:
        """Save the model as a diffusers folder, with its upscaler."""
        quiet_libraries()
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        if self.upscaler:
            (folder / FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(self.upscaler, folder / FOLDER / self.upscaler.name)

    # Identity, for caches

    def latent_cache_key(self) -> dict[str, str]:
        """Return what latents depend on beside the picture."""
        return {"vae": digest_of(self.pipeline.vae)}

    def text_cache_key(self) -> dict[str, str]:
        """Return what a conditioning depends on beside the caption."""
        spelling = [_spelling(self.tokenizer(key)) for key in self.text_encoders]
        skip = self.caption_clip_skip
        return {
            "encoders": digest_of(*self.text_encoders.values()),
            "tokenizers": "\n".join(spelling),
            **({} if skip == 1 else {"clip_skip": str(skip)}),
        }

    # Layers

    def tokenizer(self, encoder: str) -> Tokenizer:
        """Return the tokenizer of a text encoder, by kohya's name."""
        tokenizer: Tokenizer = getattr(self.pipeline, self._tokenizer_attribute(encoder))
        return tokenizer

    def set_tokenizer(self, encoder: str, tokenizer: Tokenizer) -> None:
        """Exchange the tokenizer of a text encoder."""
        setattr(self.pipeline, self._tokenizer_attribute(encoder), tokenizer)

    def _tokenizer_attribute(self, encoder: str) -> str:
        return self.text_encoder_names[encoder].replace("text_encoder", "tokenizer")

    @property
    def components(self) -> dict[str, Any]:
        """The modules a LoRA can change: `denoiser`, and the text encoders by kohya's names."""
        return {"denoiser": self.denoiser, **self.text_encoders}

    def module_names(self) -> Mapping[str, tuple[str, str]]:
        """Return canonical LoRA layer name -> (part, path in it), of linears and convolutions."""
        return self._module_names

    @cached_property
    def vocabulary(self) -> Mapping[str, tuple[Slot, ...]]:
        """Every layer name that a LoRA file may use for this model -> the modules it changes."""
        return build_name_map(self.name, self.adaptable_layers)

    def lora_targets(
        self, groups: Iterable[str], text_encoder: bool = False
    ) -> dict[str, dict[str, list[str]]]:
        """Return part -> group of the row's targets, or text_encoder -> paths of the layers to put
        an adapter on, in their order. A group that is part of another comes with that one."""
        asked, targets = set(groups), self.spec.target_groups
        narrow = [group for group in targets if {group, WIDER.get(group)} & asked]
        patterns = {"denoiser": {group: targets[group] for group in narrow}}
        if text_encoder:
            patterns |= {key: {TEXT_ENCODER: self.spec.text_targets} for key in self.text_encoders}
        paths: dict[str, dict[str, list[str]]] = {}
        for part, of_part in patterns.items():
            every = [path for home, path in self._module_names.values() if home == part]
            paths[part] = {
                group: [path for path in every if re.search(rf"\b({pattern})$", path)]
                for group, pattern in of_part.items()
            }
        return paths

    def _name_modules(self) -> Iterable[tuple[str, tuple[str, str]]]:
        for part, layers in self.adaptable_layers.items():
            for path, module in layers.items():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    flat = path.replace(".", "_")
                    is_text = part in self.text_encoders
                    name = text_name(f"lora_{part}_", flat) if is_text else f"lora_unet_{flat}"
                    yield name, (part, path)


def _spelling(tokenizer: Tokenizer) -> str:
    """Return what a tokenizer makes of any text, as JSON; not how long it was last asked to make
    it, which it remembers as well."""
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**table, "truncation": None, "padding": None})


# A scheduler that begins from noise alone (arXiv:2305.08891, sections 3.1 and 3.3)
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
