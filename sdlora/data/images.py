"""A picture file as it is shown: turned upright, in sRGB, on white; as a tensor of its bucket."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
FORMATS_SAID = "PNG, JPEG, WebP or BMP"
MAX_PIXELS = 80_000_000  # below the size at which Pillow itself starts to warn of bombs
# What Pillow raises, over its formats, on a file that is damaged or meant to do damage.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 lie on their side


def open_picture(path: Path) -> Image.Image:
    """The picture, only its header read. Raises one of BROKEN, ValueError when it is too big."""
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"has more than {MAX_PIXELS // 1_000_000} million pixels")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as a viewer shows it."""
    sideways = image.getexif().get(_ORIENTATION, 1) >= 5
    return (image.height, image.width) if sideways else image.size


def load_rgb(path: Path) -> Image.Image:
    """The picture as a viewer shows it: RGB, upright, sRGB, see-through parts on white.

    Of a moving picture it is the first frame. Raises one of BROKEN.
    """
    with open_picture(path) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
    profile = image.info.get("icc_profile")
    opaque = _srgb(_eight_bits(image), profile)
    if not image.has_transparency_data:
        return opaque
    # Taking the alpha channel off would uncover the colours it hides.
    paper = Image.new("RGB", image.size, "white")
    paper.paste(opaque, mask=image.convert("RGBA").getchannel("A"))
    return paper


def _eight_bits(image: Image.Image) -> Image.Image:
    """The colours in a mode that ImageCms takes: L, RGB or CMYK."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them to white
        return Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype("u1"))
    return image.convert({"1": "L", "LA": "L", "CMYK": "CMYK", "L": "L"}.get(image.mode, "RGB"))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, through the colour profile that the file carries if it carries a usable one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile for other channels, or a broken one: viewers ignore it as well
    return image.convert("RGB")


def load_pixels(path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W) float32 in -1..1: scaled to cover `size` = (W, H) (Lanczos), the middle cut out."""
    import torch  # only here: whoever reads a picture alone does not wait for it

    image = ImageOps.fit(load_rgb(path), size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
