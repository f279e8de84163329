"""Other programs' pictures: their emphasis in A1111's words, and a name for what is left out."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recorded_metadata import A1111, COMFY, DREAM, FOOOCUS, INVOKE, INVOKE_2, NOVELAI, SWARM
from sdlora.errors import DataError
from sdlora.image_metadata.reader import parse_infotext, read_parameters
from sdlora.image_metadata.to_request import request_of
from sdlora.lora.library.library import Library
from sdlora.prompt import parse_prompt
from sdlora.prompt.languages import from_compel, from_novelai
from sdlora.workspace import Workspace

PICTURE = Image.new("RGB", (8, 8), "red")


def png(path: Path, **chunks: str) -> Path:
    info = PngInfo()
    for name, text in chunks.items():
        info.add_text(name.replace("_", "-") if name == "sd_metadata" else name, text)
    PICTURE.save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("cat++ (red)1.3", "(cat:1.21) (red:1.3)"),
        ("a cat--, b", "a (cat:0.81), b"),
        ('"a dog"+ c', "(a dog:1.1) c"),
        ("(a (b)1.5 c)++", "(a:1.21) (b:1.82) (c:1.21)"),
        ("saber (fate)", "saber fate"),
        ("\\(z\\) [y] #1", "\\(z\\) \\[y\\] \\#1"),
        ("well-known a+b C++.", "well-known a+b (C:1.21)."),
        ("((a", "\\(\\(a"),
        ("plain, words", "plain, words"),
    ],
)
def test_invokeais_emphasis(text: str, ours: str) -> None:
    assert from_compel(text) == (ours, [])


@pytest.mark.parametrize("text", ['("a", "b").blend(1, 1)', "a cat.swap(dog)", '("a").and()'])
def test_invokeais_methods_are_told(text: str) -> None:
    same, problems = from_compel(text)
    assert same == text and "is not known here" in problems[0]


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("{girl}, [rain]", "(girl:1.05), (rain:0.952)"),
        ("{{{a, b}}} (c)", "(a, b:1.16) \\(c\\)"),
        ("1.3::a dog::, x", "(a dog:1.3), x"),
        ("-1::hat::, a:b", "(hat:-1), a:b"),
    ],
)
def test_novelais_emphasis(text: str, ours: str) -> None:
    assert from_novelai(text) == (ours, [])


def test_novelai(tmp_path: Path) -> None:
    record = {key: value for key, value in NOVELAI.items() if key != "prompt"}
    beside = {"Title": "AI generated image", "Description": NOVELAI["prompt"],
              "Software": "NovelAI", "Source": "Stable Diffusion XL C1E1DE52"}  # fmt: skip
    path = png(tmp_path / "a.png", Comment=json.dumps(record), **beside)
    found = read_parameters(path)
    assert (found.program, found.prompt, found.negative) == (
        "NovelAI", "(girl:1.05), (rain:0.952), \\#1", "(bad:1.05)",
    )  # fmt: skip
    assert found.fields == {
        "Steps": "28", "Sampler": "k_euler_ancestral", "Schedule type": "karras",
        "CFG scale": "5.5", "Seed": "3812345678", "Size": "832x1216",
        "Model": "Stable Diffusion XL C1E1DE52",
    }  # fmt: skip
    assert [str(problem) for problem in found.problems] == [
        "not taken over from what NovelAI wrote: cfg_rescale: 0.2"
    ]
    exif = Image.Exif()
    whole = json.dumps({**beside, "Comment": json.dumps(record)})
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + whole.encode()
    PICTURE.save(tmp_path / "a.webp", exif=exif)
    assert read_parameters(tmp_path / "a.webp") == found


def test_invokeai_of_before_3(tmp_path: Path, workspace: Path) -> None:
    found = read_parameters(png(tmp_path / "a.png", sd_metadata=json.dumps(INVOKE_2), Dream=DREAM))
    assert (found.prompt, found.negative) == ("a (cat:1.21)", "ugly, (bad:1.2)")
    assert found.fields == {
        "Steps": "50", "Sampler": "k_euler_a", "CFG scale": "7.5", "Seed": "1234",
        "Size": "768x512", "Model": "analog-1.0",
    }  # fmt: skip
    assert [str(problem) for problem in found.problems] == [
        "not taken over from what InvokeAI wrote: perlin: 0.1"
    ]
    older = read_parameters(png(tmp_path / "b.png", Dream=DREAM))
    assert (older.prompt, older.negative) == ("a (cat:1.21)", "ugly")
    assert older.fields == {key: value for key, value in found.fields.items() if key != "Model"}
    space = Workspace.open(workspace)
    assert request_of(older, Library.for_workspace(space), space)[0]["sampler"] == "euler_a"


# a record, what it holds besides, and what is told of that
LEFT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (INVOKE, {"controlnets": [{"model": "canny"}]}, 'controlnets: [{"model": "canny"}]'),
    (INVOKE, {"refiner_model": {"name": "xl"}}, "refiner_model: "),
    (INVOKE, {"generation_mode": "inpaint"}, 'generation_mode: "inpaint"'),
    (INVOKE, {"steps": {"a": 1}}, "steps: "),
    (SWARM["sui_image_params"], {"refinermethod": "PostApply"}, 'refinermethod: "PostApply"'),
    (FOOOCUS, {"styles": "['Fooocus V2']"}, "styles: \"['Fooocus V2']\""),
    (NOVELAI, {"v4_prompt": {"caption": {"char_captions": [{"char_caption": "boy"}]}}},
     "characters: "),
    (NOVELAI, {"reference_strength_multiple": [0.6]}, "reference_strength_multiple: [0.6]"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "more", "told"), LEFT)
def test_what_is_left_out_of_a_record_is_named(
    record: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    whole: dict[str, Any] = record | more
    if record is SWARM["sui_image_params"]:
        whole = {"sui_image_params": whole}
    found = parse_infotext(json.dumps(whole))
    assert found.prompt and told in "\n".join(found.problems)


def test_a_tag_and_a_listed_lora_are_one() -> None:
    params = SWARM["sui_image_params"]
    for listed in ("hat", "styles/hat.safetensors"):
        record = {**params, "loras": [listed], "loraweights": ["0.5"], "loratencweights": None}
        found = parse_infotext(json.dumps({"sui_image_params": record}))
        assert [tag.unet for tag in parse_prompt(found.prompt).loras] == [0.5]
        record["loraweights"] = ["0.9"]
        told = parse_infotext(json.dumps({"sui_image_params": record})).problems
        assert "0.5 in the prompt and 0.9 in the picture's list" in "\n".join(told)


@pytest.mark.parametrize("comment", ["Created with GIMP", "Screenshot", "a: b"])
def test_a_comment_is_no_prompt(tmp_path: Path, comment: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + comment.encode()
    PICTURE.save(tmp_path / "a.jpg", comment=comment.encode())
    PICTURE.save(tmp_path / "b.jpg", exif=exif)
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg", png(tmp_path / "a.png", Comment=comment)]
    for path in paths:
        with pytest.raises(DataError, match="is not taken for a prompt"):
            read_parameters(path)
    PICTURE.save(tmp_path / "c.jpg", comment=A1111.encode())
    assert read_parameters(tmp_path / "c.jpg") == parse_infotext(A1111)


def test_broken_and_strange_json_is_told(tmp_path: Path) -> None:
    for text, told in (
        (json.dumps(SWARM)[:80], "'parameters' is damaged and not read"),
        ('{"tool": "x", "prompt_text": "y"}', "JSON of a program that is not known here: tool, "),
    ):
        with pytest.raises(DataError, match=told):
            read_parameters(png(tmp_path / "a.png", parameters=text))
    path = png(tmp_path / "b.png", parameters=json.dumps(SWARM)[:80], prompt=json.dumps(COMFY))
    found = read_parameters(path)
    assert found.program == "ComfyUI" and "damaged" in found.problems[-1]


def test_damaged_exif_takes_nothing_from_the_other_texts(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", A1111)
    info.add(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\0\0")
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    assert read_parameters(tmp_path / "a.png") == parse_infotext(A1111)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right)


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"tEXt", b"Software\0x", checksum=1),
        chunk(b"pHYs", b"k"),
        chunk(b"zTXt", b"k\0\0nothing", checksum=1),
        chunk(b"iTXt", b"k", checksum=1),
    ],
)
@pytest.mark.parametrize("text", ["tEXt", "zTXt", "iTXt"])
def test_a_png_that_is_damaged_elsewhere_gives_its_text(
    tmp_path: Path, broken: bytes, text: str
) -> None:
    info = PngInfo()
    if text == "iTXt":
        info.add_itxt("parameters", A1111, zip=True)
    else:
        info.add_text("parameters", A1111, zip=text == "zTXt")
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + broken + data[33:])
    found = read_parameters(tmp_path / "a.png")
    assert found.fields == parse_infotext(A1111).fields
    assert found.problems == ("the picture is damaged; what could be read of its texts is used",)


def test_utf_8_behind_the_mark_of_utf_16(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode()
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert read_parameters(tmp_path / "a.jpg") == parse_infotext(A1111)


def test_loras_of_a_graph_beside_a_text_are_added(tmp_path: Path) -> None:
    text = "scenery, <lora:ink:0.8>\nSteps: 20, Seed: 1, Size: 512x768"
    found = read_parameters(png(tmp_path / "a.png", parameters=text, prompt=json.dumps(COMFY)))
    assert found.prompt == "scenery, <lora:ink:0.8> <lora:fur:0.3>"
    assert found.fields["Seed"] == "1"
    assert "only ComfyUI's graph names are added" in "\n".join(found.problems)


def test_missing_textual_inversions_are_told(workspace: Path) -> None:
    space = Workspace.open(workspace)
    space.embeddings.mkdir()
    (space.embeddings / "here.safetensors").touch()
    text = "a cat, (embedding:sub/gone.pt:1.2) embedding:here"
    nodes = {"6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}}}
    for record, name in ((COMFY | nodes, "gone"), ({**INVOKE, "positive_prompt": "<odd>"}, "odd")):
        found = parse_infotext(json.dumps(record))
        _, problems = request_of(found, Library.for_workspace(space), space)
        told = [problem for problem in problems if "textual inversion" in problem]
        assert told == [f"the textual inversion {name!r} is not here"]
