"""A picture file as it is shown: turned upright, in sRGB, on paper; as a tensor of its bucket."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageEnhance, ImageOps

from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.data.image_augmentation import ImageView
from sdlora.data.image_files import read_picture

if TYPE_CHECKING:
    from torch import Tensor

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def load_rgb(path: Path, paper: str = "white") -> Image.Image:
    """The picture as a viewer shows it: RGB, upright, sRGB, see-through parts on `paper`.

    Of a moving picture it is the first frame. Raises one of BROKEN.
    """
    return as_shown(read_picture(path).image, paper)


def as_shown(image: Image.Image, paper: str = "white") -> Image.Image:
    """An upright picture of any mode in RGB and sRGB, its see-through parts on `paper`."""
    opaque = _srgb(_eight_bits(image), image.info.get("icc_profile"))
    if not image.has_transparency_data:
        return opaque
    # Taking the alpha channel off would uncover the colours it hides.
    background = Image.new("RGB", image.size, paper)
    background.paste(opaque, mask=_alpha(image))
    return background


def load_alpha(path: Path) -> Image.Image:
    """Return the alpha channel of the picture: white where it is opaque (mode L). Raises one of
    BROKEN."""
    image = read_picture(path).image
    return _alpha(image) if image.has_transparency_data else Image.new("L", image.size, "white")


def load_mask(path: Path) -> Image.Image:
    """A mask file as grey (mode L), upright. Raises one of BROKEN."""
    return as_shown(read_picture(path).image, "black").convert("L")


def load_pixels(path: Path, size: tuple[int, int], view: ImageView = ImageView()) -> Tensor:  # noqa: B008
    """(3, H, W) float32 in -1..1: scaled to cover `size` = (W, H) (Lanczos), cut out and coloured
    as `view` says; by itself the middle, as it is."""
    import torch  # only here: whoever reads a picture alone does not wait for it

    image = _cut(_coloured(load_rgb(path, view.paper), view.colours), size, view)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def load_weights(mask: Image.Image, size: tuple[int, int], view: ImageView, cells: int) -> Tensor:
    """(1, H / cells, W / cells) float32 in 0..1: a mask (mode L) of a whole picture, scaled and cut
    as `view` cuts the picture, each latent cell the mean of its pixels."""
    import torch

    fitted = _cut(mask, size, view, Image.Resampling.BOX)
    small = fitted.resize((size[0] // cells, size[1] // cells), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))[None].float() / 255


def _cut(
    image: Image.Image,
    size: tuple[int, int],
    view: ImageView,
    scaling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    fitted = ImageOps.fit(image, size, scaling, centering=view.centre)
    return ImageOps.mirror(fitted) if view.mirrored else fitted


def _coloured(image: Image.Image, colours: tuple[float, float, float]) -> Image.Image:
    """Brightness, contrast and saturation multiplied by these."""
    for change, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours, strict=True
    ):
        image = change(image).enhance(factor) if factor != 1 else image
    return image


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The colours in a mode that ImageCms takes: L, RGB or CMYK."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them to white
        return Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype("u1"))
    return image.convert({"1": "L", "LA": "L", "CMYK": "CMYK", "L": "L"}.get(image.mode, "RGB"))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, through the colour profile that the file carries if it carries a usable one."""
    if profile:
        try:
            with parsing():
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
                return converted or image.convert("RGB")
        except ForeignDataError:
            pass  # a profile for other channels, or a broken one: viewers ignore it as well
    return image.convert("RGB")
