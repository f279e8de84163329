"""A folder as people have them: every kind of picture file, good and bad."""

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

Make = Callable[[Path], object]


def scene(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Blocks of colour with sharp edges, unlike those of any other seed."""
    rng = random.Random(seed)
    small = Image.new("RGB", (6, 4))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(24)])
    return small.resize(size, Image.Resampling.NEAREST)


def _sixteen(path: Path) -> None:
    Image.fromarray(np.asarray(scene(13).convert("L"), "u2") * 257).save(path)


def _exif(orientation: int) -> Make:
    def make(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        scene(20 + orientation).save(path, exif=exif)

    return make


def _profile(path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene(14).save(path, icc_profile=lab)


def _palette(path: Path) -> None:
    scene(15).convert("P", palette=Image.Palette.ADAPTIVE).save(path, transparency=0)


def _alpha(path: Path) -> None:
    image = scene(16).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def _moving(path: Path) -> None:
    scene(17).save(path, save_all=True, append_images=[scene(18)], format="WEBP")


def _huge(path: Path) -> None:
    with io.BytesIO() as file:
        scene(19).save(file, "BMP")
        raw = bytearray(file.getvalue())
    raw[18:26] = struct.pack("<ii", 30_000, 30_000)
    path.write_bytes(raw)


def _cut_off(path: Path) -> None:
    with io.BytesIO() as file:
        scene(50, (400, 300)).save(file, "JPEG")
        path.write_bytes(file.getvalue()[:-3000])


def _plain(seed: int, size: tuple[int, int] = (96, 64), mode: str = "RGB") -> Make:
    return lambda path: scene(seed, size).convert(mode).save(path)


# File -> how it is made. Those of GOOD are learnt, of BAD none is.
GOOD: dict[str, Make] = {
    "1.rgb.png": _plain(1), "grey.png": _plain(2, mode="L"), "bits.png": _plain(3, mode="1"),
    "cmyk.jpg": _plain(4, mode="CMYK"), "grey alpha.png": _plain(5, mode="LA"),
    "sixteen.png": _sixteen, "palette.png": _palette, "alpha.png": _alpha, "profile.jpg": _profile,
    "new.avif": _plain(6), "old.bmp": _plain(7), "web.webp": _plain(8), "moves.webp": _moving,
    "Größe 日本 😀.png": _plain(9), "sub/deep/in.png": _plain(10), "5_zibo/five.png": _plain(11),
    "UPPER.PNG": _plain(12), "really a jpeg.png": lambda p: scene(60).save(p, "JPEG"),
    "tall.png": _plain(61, (64, 700)), "tiny.png": _plain(62, (5, 4)),
    "one.png": _plain(63, (1, 1)),
    **{f"exif{n}.jpg": _exif(n) for n in range(1, 9)},
    "twin.png": _plain(1), "near.jpg": _plain(12, (90, 60)),
    "bare.png": _plain(64), "empty caption.png": _plain(65), "latin caption.png": _plain(66),
}  # fmt: skip
BAD: dict[str, Make] = {
    "cut off.jpg": _cut_off,
    "nothing.png": lambda path: path.write_bytes(b""),
    "page.jpg": lambda path: path.write_text("<!doctype html><p>not found"),
    "film.gif": lambda path: scene(70).save(path, "GIF"),
    "scan.tif": lambda path: scene(71).save(path, "TIFF"),
    "huge.bmp": _huge,
    "noise.webp": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
}


def make_folder(folder: Path) -> Path:
    """The folder, with captions for nearly all."""
    for name, make in (GOOD | BAD).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        path.with_suffix(".txt").write_text(f"zibo, {path.stem}", encoding="utf-8")
    (folder / "bare.txt").unlink()
    (folder / "empty caption.txt").write_text(" \n")
    (folder / "latin caption.txt").write_bytes(b"zibo, caf\xe9")
    (folder / "lonely.txt").write_text("of nothing")
    (folder / "notes.md").write_text("# notes")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return folder
