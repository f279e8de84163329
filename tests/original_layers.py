"""The layers of the base models as their first code builds them: dotted name -> weight shape.

Written from that code's own constructors, loop for loop, without a look at diffusers: what kohya's
trainer, ComfyUI and A1111 name their LoRA layers after.
"""

from collections.abc import Iterator

Shape = tuple[int, ...]
Layers = Iterator[tuple[str, Shape]]


def flux() -> dict[str, Shape]:
    """black-forest-labs/flux, src/flux/model.py and modules/layers.py, of FLUX.1 dev."""
    w = 3072
    return dict(_flux_outside(w)) | dict(_flux_double(w)) | dict(_flux_single(w))


def _flux_outside(w: int) -> Layers:
    yield "img_in", (w, 64)
    yield "txt_in", (w, 4096)
    for name, width in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        yield f"{name}.in_layer", (w, width)
        yield f"{name}.out_layer", (w, w)
    yield "final_layer.linear", (64, w)
    yield "final_layer.adaLN_modulation.1", (2 * w, w)


def _flux_double(w: int) -> Layers:
    for block in range(19):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            yield f"{name}_mod.lin", (6 * w, w)
            yield f"{name}_attn.qkv", (3 * w, w)
            yield f"{name}_attn.norm.query_norm", (128,)
            yield f"{name}_attn.norm.key_norm", (128,)
            yield f"{name}_attn.proj", (w, w)
            yield f"{name}_mlp.0", (4 * w, w)
            yield f"{name}_mlp.2", (w, 4 * w)


def _flux_single(w: int) -> Layers:
    for block in range(38):
        name = f"single_blocks.{block}"
        yield f"{name}.linear1", (7 * w, w)
        yield f"{name}.linear2", (w, 5 * w)
        yield f"{name}.norm.query_norm", (128,)
        yield f"{name}.norm.key_norm", (128,)
        yield f"{name}.modulation.lin", (3 * w, w)


def sd3(depth: int, dual: int = 0, norm: bool = False) -> dict[str, Shape]:
    """Stability-AI/sd3.5, mmditx.py: `dual` blocks with a second attention."""
    return dict(_sd3_outside(64 * depth)) | dict(_sd3_blocks(depth, dual, norm))


def _sd3_outside(w: int) -> Layers:
    yield "x_embedder.proj", (w, 16, 2, 2)
    yield "context_embedder", (w, 4096)
    for name, width in (("t_embedder", 256), ("y_embedder", 2048)):
        yield f"{name}.mlp.0", (w, width)
        yield f"{name}.mlp.2", (w, w)
    yield "final_layer.linear", (2 * 2 * 16, w)
    yield "final_layer.adaLN_modulation.1", (2 * w, w)


def _sd3_blocks(depth: int, dual: int, norm: bool) -> Layers:
    w = 64 * depth
    for block in range(depth):
        for stream in ("context_block", "x_block"):
            name = f"joint_blocks.{block}.{stream}"
            pre_only = stream == "context_block" and block == depth - 1
            twice = stream == "x_block" and block < dual
            for attention in ("attn", "attn2") if twice else ("attn",):
                yield f"{name}.{attention}.qkv", (3 * w, w)
                if norm:
                    yield f"{name}.{attention}.ln_q", (64,)
                    yield f"{name}.{attention}.ln_k", (64,)
                if not pre_only:
                    yield f"{name}.{attention}.proj", (w, w)
            if not pre_only:
                yield f"{name}.mlp.fc1", (4 * w, w)
                yield f"{name}.mlp.fc2", (w, 4 * w)
            yield f"{name}.adaLN_modulation.1", ((2 if pre_only else 9 if twice else 6) * w, w)


class UNet:
    """openaimodel.py's UNetModel: 320 channels, two ResNet blocks per level.

    `depths` are the transformer blocks per level, 0 where there is no attention.
    """

    def __init__(
        self, mult: Shape, depths: Shape, context: int, linear: bool, added: int = 0
    ) -> None:
        self.context, self.linear = context, linear
        self.layers: dict[str, Shape] = {}
        self._embedding("time_embed.0", "time_embed.2", 320)
        if added:
            self._embedding("label_emb.0.0", "label_emb.0.2", added)
        self._down(mult, depths)
        self._resnet("middle_block.0", 320 * mult[-1], 320 * mult[-1])
        self._transformer("middle_block.1", 320 * mult[-1], depths[-1] or 1)
        self._resnet("middle_block.2", 320 * mult[-1], 320 * mult[-1])
        self._up(mult, depths)
        self.layers |= {"out.0": (320,), "out.2": (4, 320, 3, 3)}

    def _embedding(self, first: str, second: str, width: int) -> None:
        self.layers |= {first: (1280, width), second: (1280, 1280)}

    def _down(self, mult: Shape, depths: Shape) -> None:
        self.layers["input_blocks.0.0"] = 320, 4, 3, 3
        self.skipped, channels, number = [320], 320, 1
        for level, (wide, depth) in enumerate(zip(mult, depths, strict=True)):
            for _ in range(2):
                self._resnet(f"input_blocks.{number}.0", channels, 320 * wide)
                channels = 320 * wide
                self._transformer(f"input_blocks.{number}.1", channels, depth)
                self.skipped.append(channels)
                number += 1
            if level < len(mult) - 1:
                self.layers[f"input_blocks.{number}.0.op"] = channels, channels, 3, 3
                self.skipped.append(channels)
                number += 1

    def _up(self, mult: Shape, depths: Shape) -> None:
        channels, number = 320 * mult[-1], 0
        for level, (wide, depth) in reversed(list(enumerate(zip(mult, depths, strict=True)))):
            for layer in range(3):
                self._resnet(f"output_blocks.{number}.0", channels + self.skipped.pop(), 320 * wide)
                channels = 320 * wide
                self._transformer(f"output_blocks.{number}.1", channels, depth)
                if level and layer == 2:
                    place = 2 if depth else 1
                    self.layers[f"output_blocks.{number}.{place}.conv"] = channels, channels, 3, 3
                number += 1

    def _resnet(self, name: str, old: int, new: int) -> None:
        self.layers |= {
            f"{name}.in_layers.0": (old,),
            f"{name}.in_layers.2": (new, old, 3, 3),
            f"{name}.emb_layers.1": (new, 1280),
            f"{name}.out_layers.0": (new,),
            f"{name}.out_layers.3": (new, new, 3, 3),
        }
        if old != new:
            self.layers[f"{name}.skip_connection"] = new, old, 1, 1

    def _transformer(self, name: str, width: int, depth: int) -> None:
        if not depth:
            return
        project = (width, width) if self.linear else (width, width, 1, 1)
        self.layers |= {f"{name}.norm": (width,)}
        self.layers |= {f"{name}.proj_in": project, f"{name}.proj_out": project}
        for block in range(depth):
            inner = f"{name}.transformer_blocks.{block}"
            for attention, source in (("attn1", width), ("attn2", self.context)):
                self.layers[f"{inner}.{attention}.to_q"] = width, width
                self.layers[f"{inner}.{attention}.to_k"] = width, source
                self.layers[f"{inner}.{attention}.to_v"] = width, source
                self.layers[f"{inner}.{attention}.to_out.0"] = width, width
            self.layers[f"{inner}.ff.net.0.proj"] = 8 * width, width
            self.layers[f"{inner}.ff.net.2"] = width, 4 * width
            self.layers |= {f"{inner}.norm{n}": (width,) for n in (1, 2, 3)}


# architecture -> its denoiser's layers
FIRST_CODE: dict[str, dict[str, Shape]] = {
    "sd1": UNet((1, 2, 4, 4), (1, 1, 1, 0), context=768, linear=False).layers,
    "sd2": UNet((1, 2, 4, 4), (1, 1, 1, 0), context=1024, linear=True).layers,
    "sdxl": UNet((1, 2, 4), (0, 2, 10), context=2048, linear=True, added=2816).layers,
    "sd3": sd3(24),
    "sd35_medium": sd3(24, dual=13, norm=True),
    "sd35_large": sd3(38, norm=True),
    "flux": flux(),
}
