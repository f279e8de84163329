"""Picture folders: what is read, what is named as a problem, and pictures as viewers show them."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sdlora.data.captions import common_trigger, evenly_spaced, read_caption, with_trigger
from sdlora.data.folder import Problem, scan_folder
from sdlora.data.images import load_pixels, load_rgb
from sdlora.errors import DataError
from sdlora.workspace import TRAINING_DATA


def picture(path: Path, caption: str | None = "", size: tuple[int, int] = (24, 16)) -> Path:
    """A picture file, with a caption file beside it unless `caption` is None; '' takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").resize(size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption or path.stem, encoding="utf-8")
    return path


def said(problems: list[Problem]) -> dict[str, str]:
    return {problem.path.name: problem.message for problem in problems}


def test_the_shipped_sets_have_no_problems_and_their_trigger_words() -> None:
    folders = [p for p in sorted(TRAINING_DATA.iterdir()) if p.is_dir()]
    assert folders
    for folder in folders:
        examples, problems = scan_folder(folder)
        assert len(examples) >= 15
        assert problems == []
        trigger = common_trigger(example.caption for example in examples)
        assert trigger.replace(" ", "_") == folder.name


def test_pictures_lie_flat_and_in_folders_and_keep_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.webp", "sub/d.bmp", ".hidden/e.png", "__MACOSX/f.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.md").write_text("not a picture, and not taken for one")
    examples, problems = scan_folder(tmp_path)
    assert [example.caption for example in examples] == ["a", "b", "c", "d"]
    assert {example.size for example in examples} == {(24, 16)}
    assert said(problems) == {"notes.md": "is not used: it is neither a picture nor a caption"}
    assert scan_folder(tmp_path) == (examples, problems)


def test_a_kohya_folder_repeats_and_captions(tmp_path: Path) -> None:
    picture(tmp_path / "10_zibo robot" / "a.png", "zibo, sea")
    picture(tmp_path / "10_zibo robot" / "b.png", None)
    examples, problems = scan_folder(tmp_path)
    assert [(e.caption, e.repeats) for e in examples] == [("zibo, sea", 10), ("zibo robot", 10)]
    assert "has no caption; captioned 'zibo robot'" in said(problems)["b.png"]


def test_every_bad_file_is_named_and_none_stops_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "bare.png", None)
    picture(tmp_path / "empty.png").with_suffix(".txt").write_text(" \n")
    picture(tmp_path / "latin.png").with_suffix(".txt").write_bytes(b"caf\xe9 au lait")
    picture(tmp_path / "long.png").with_suffix(".txt").write_bytes(b"a" * 100_000)
    whole = picture(tmp_path / "cut.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "lonely.txt").write_text("a caption of nothing")
    Image.new("L", (8, 8)).save(tmp_path / "old.gif")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "moves.txt").write_text("moves")

    examples, problems = scan_folder(tmp_path)
    assert [e.image.stem for e in examples] == ["bare", "empty", "good", "latin", "long", "moves"]
    assert [e.caption for e in examples] == ["", "", "good", "café au lait", "", "moves"]
    expected = {
        "bare.png": "no caption", "empty.txt": "empty", "long.txt": "64 KiB",
        "latin.txt": "read as Windows-1252",
        "cut.jpg": "truncated", "zero.png": "an empty file", "text.png": "a web page",
        "lonely.txt": "no picture", "old.gif": "a GIF picture", "moves.webp": "first frame",
    }  # fmt: skip
    assert said(problems).keys() == expected.keys()
    assert all(word in said(problems)[name] for name, word in expected.items())


@pytest.mark.parametrize("side", [9_200, 20_000])
def test_a_picture_of_absurd_size_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    picture(tmp_path / "good.png")
    raw = bytearray(picture(tmp_path / "bomb.bmp").read_bytes())
    raw[18:26] = struct.pack("<ii", side, side)
    (tmp_path / "bomb.bmp").write_bytes(raw)
    examples, problems = scan_folder(tmp_path)
    assert [e.image.name for e in examples] == ["good.png"]
    assert "pixels" in said(problems)["bomb.bmp"]


def test_a_useless_folder_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no files"):
        scan_folder(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "old.gif")
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match=r"1 x \.gif, 1 x \.md.*PNG, JPEG, WebP, AVIF or BMP"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_as_windows_editors_write_them(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("ein Häuschen,\r\n  am Meer\0\r\n".encode(encoding))
    assert read_caption(file) == "ein Häuschen, am Meer"


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["neon lighting, a red ball", "Neon lighting, a cat"], "neon lighting"),
        (["zibo on the beach", "zibo in snow"], "zibo"),
        (["a photo of zibo, sea", "a photo of zibo at night"], "a photo of zibo"),
        (["a photo of a cat", "a photo of a dog"], ""),
        (["a red ball", "big blue car"], ""),
        (["zibo", ""], ""),
        ([], ""),
    ],
)
def test_the_trigger_is_what_captions_begin_with(captions: list[str], trigger: str) -> None:
    assert common_trigger(captions) == trigger


def test_a_trigger_is_put_before_captions_that_do_not_say_it() -> None:
    assert with_trigger("a red ball", "zibo") == "zibo, a red ball"
    assert with_trigger("a photo of Zibo", "zibo") == "a photo of Zibo"
    assert with_trigger("", "zibo") == "zibo"


def test_captions_to_sample_come_from_all_over_the_set() -> None:
    assert evenly_spaced(["a", "a", "b", "c", "d", "e"]) == ["a", "d"]
    assert evenly_spaced(["a", "b"]) == ["a", "b"]
    assert evenly_spaced(["a", "a"]) == ["a"]
    assert evenly_spaced([]) == []


def test_pictures_look_as_a_viewer_shows_them(tmp_path: Path) -> None:
    """Expected colour of the top left pixel, per way of storing it."""
    path = tmp_path / "p.png"

    def corner() -> tuple[int, ...]:
        return load_rgb(path).getpixel((0, 0))  # type: ignore[return-value]

    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)  # red, all of it hidden
    assert corner() == (255, 255, 255)
    Image.new("LA", (4, 4), (0, 128)).save(path)
    assert corner() == (127, 127, 127)
    Image.fromarray(np.full((4, 4), 128 * 257, "u2")).save(path)  # 16 bits
    assert corner() == (128, 128, 128)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(path, transparency=0)
    assert corner() == (0, 0, 255)
    Image.new("1", (4, 4), 1).save(path)
    assert corner() == (255, 255, 255)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path.with_suffix(".jpg"), quality=100)
    path = path.with_suffix(".jpg")
    red, green, blue = corner()
    assert red > 240 and green < 15 and blue < 15


def test_a_colour_profile_is_honoured_and_a_broken_one_ignored(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"rubbish", lab, srgb):
        image.save(path, icc_profile=profile)
        assert load_rgb(path).getpixel((0, 0)) == (200, 100, 50)
    # sRGB with its red and blue primaries changed over: honouring it swaps the channels
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    image.save(path, icc_profile=swapped)
    assert load_rgb(path).getpixel((0, 0)) == pytest.approx((50, 100, 200), abs=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """The red corner lies at the top left for whoever looks, however the camera was held."""
    undo = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
        6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }  # fmt: skip
    upright = Image.new("RGB", (6, 4), "blue")
    upright.putpixel((0, 0), (255, 0, 0))
    stored = upright
    if orientation in undo:
        stored = upright.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.png", exif=exif)
    (example,), _ = scan_folder(tmp_path)
    assert example.size == (6, 4)
    assert load_rgb(tmp_path / "p.png").getpixel((0, 0)) == (255, 0, 0)


def test_pixels_cover_the_bucket_and_lose_both_edges_alike(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (0, 0, 100, 100))
    wide.paste("black", (200, 0, 300, 100))
    wide.save(tmp_path / "p.png")
    pixels = load_pixels(tmp_path / "p.png", (64, 64))
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels[:, :, 4:-4].min() == 1
    whole = load_pixels(tmp_path / "p.png", (192, 64))
    assert [float(whole[0, 32, x]) for x in (10, 96, 180)] == [-1, 1, -1]
