"""Settings read back: from our own pictures whatever the prompt, and from other programs' forms."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from growth import is_linear
from recorded_metadata import A1111, COMFY, COMFY_FLUX, FOOOCUS, INVOKE, SWARM, WORKFLOW
from sdlora.errors import DataError, SettingsError
from sdlora.image_metadata.a1111 import parse_hashes
from sdlora.image_metadata.infotext import infotext, write_exif, write_png
from sdlora.image_metadata.reader import parse_infotext, read_parameters, rename_loras
from sdlora.prompt import parse_prompt

PICTURE = Image.new("RGB", (8, 8), "red")
FIELDS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": "7", "Seed": 1, "Size": "8x8"}
SAID = {name: str(value) for name, value in FIELDS.items()}


def test_a1111() -> None:
    found = parse_infotext(A1111)
    assert found.program == "A1111"
    assert found.prompt.endswith("standing\nin a street") and "Negative" not in found.prompt
    assert found.negative == "(worst quality:1.4), blurry\ntwo heads"
    assert len(found.fields) == 14
    assert found.fields["Size"] == "568x512" and found.fields["Version"] == "v1.5.1"
    assert found.lora_hashes == {
        "satorugojo-10": "bab8c95a8b1b", "SuguruGetoYoung_DG": "14121bf593ec"
    }  # fmt: skip


def test_forge_quotes_and_civitai_lists() -> None:
    line = (
        r'Steps: 25, Sampler: Euler, Seed: 1, Size: 8x8, Hires prompt: "a \"b\", c: d\ne", Tiling, '
        'Civitai resources: [{"type":"lora","weight":0.8},{"a":"x, y: z"}], Version: f2.0.1v1.10.1'
    )
    found = parse_infotext(f"p\n{line}")
    assert found.program == "Forge" and found.prompt == "p" and found.negative == ""
    assert found.fields["Hires prompt"] == 'a "b", c: d\ne'
    assert found.fields["Tiling"] == "Tiling"
    assert json.loads(found.fields["Civitai resources"])[1] == {"a": "x, y: z"}
    assert len(found.fields) == 8


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "count"),
    [
        ("", "", "", 0),
        ("just a prompt", "just a prompt", "", 0),
        ("Steps: 1, Seed: 2", "Steps: 1, Seed: 2", "", 0),  # two fields are not enough
        ("Steps: 1, Seed: 2, Size: 8x8", "", "", 3),
        ("Negative prompt: b\nSteps: 1, Seed: 2, Size: 8x8", "", "b", 3),
        ("a\nNegative prompt: b", "a", "b", 0),
        ("{red|blue} cat", "{red|blue} cat", "", 0),
        ('{"some": "json"}', "", "", 0),
        ("[" * 100_000, "[" * 100_000, "", 0),
        ('{"a":' * 100_000, '{"a":' * 100_000, "", 0),
    ],
)
def test_any_text(text: str, prompt: str, negative: str, count: int) -> None:
    found = parse_infotext(text)
    assert (found.prompt, found.negative, len(found.fields)) == (prompt, negative, count)


LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("a cat\nNegative prompt: bad\n{}", {}),
        ("a cat\r\nNegative prompt: bad\r\n{}\r\n", {}),
        ("a cat Negative prompt: bad {}", {}),
        ("a cat\nNegative prompt: bad {}", {}),
        ("a cat Negative prompt: bad\n{}", {}),
        ("a cat\n{}\nNegative prompt: bad", {}),
        (
            "a cat\nNegative prompt: bad\n{}\nTemplate: a {{x|y}}, b: c, d: e, f: g\nmore\n"
            "Negative Template: bad",
            {"Template": "a {x|y}, b: c, d: e, f: g\nmore", "Negative Template": "bad"},
        ),
        (
            "a cat Negative prompt: bad {} Template: a {{x|y}} Negative Template: b",
            {"Template": "a {x|y}", "Negative Template": "b"},
        ),
        ('a cat\nNegative prompt: bad\n{}\nLora hashes: "x: 1", Model: m',
         {"Lora hashes": "x: 1", "Model": "m"}),
        ("a cat\nNegative prompt: bad\n{}\n\n", {}),
    ],
)  # fmt: skip
def test_the_parameters_are_found_wherever_they_stand(text: str, more: dict[str, str]) -> None:
    found = parse_infotext(text.format(LINE))
    assert (found.prompt, found.negative) == ("a cat", "bad")
    assert found.fields == {**parse_infotext(f"\n{LINE}").fields, **more}
    assert found.fields["Steps"] == "20" and found.fields["Seed"] == "1" and not found.problems


def test_a_stray_text_behind_the_parameters_is_told() -> None:
    found = parse_infotext(f"a cat\n{LINE}\nmade with love\nby me")
    assert found.prompt == "a cat" and found.fields["Size"] == "512x512"
    assert found.problems == (
        "the text after its parameters is not taken over: 'made with love by me'",
    )


# record, program, prompt, negative prompt, fields
OTHERS = [
    (INVOKE, "InvokeAI", "landscape <lora:ink:0.75> <lora:fur:-1>", "low quality",
     {"Steps": "50", "Sampler": "dpmpp_2m_sde_k", "CFG scale": "7.5", "Seed": "356120443",
      "Size": "768x432", "Model": "amixx"}),
    (SWARM, "SwarmUI", "a photo of a cat <lora:hat:0.5> <lora:ink/fine:0.1:0.33>", "dog",
     {"Steps": "20", "Sampler": "euler", "Schedule type": "karras", "CFG scale": "7.0",
      "Seed": "1", "Size": "1024x768", "Model": "Official/sd_xl_base_1.0"}),
    (FOOOCUS, "Fooocus", "a cat <lora:sd_xl_offset:0.5>", "ugly",
     {"Steps": "30", "Sampler": "dpmpp_2m_sde_gpu", "Schedule type": "karras", "CFG scale": "4",
      "Seed": "5318", "Size": "1152x896", "Model": "juggernautXL_v8Rundiffusion",
      "Model hash": "aeb7e9e689", "Clip skip": "2"}),
    (COMFY, "ComfyUI", "scenery <lora:fur:0.3> <lora:sub/ink:0.5:0.8>", "text, watermark",
     {"Steps": "20", "Sampler": "euler", "Schedule type": "normal", "CFG scale": "8",
      "Seed": "156680208700286", "Size": "512x768", "Model": "v1-5", "Clip skip": "2"}),
    (COMFY_FLUX, "ComfyUI", "a fox <lora:fox:0:0.9>", "",
     {"Steps": "20", "Sampler": "euler", "Schedule type": "simple", "Seed": "219670278747233",
      "Size": "1024x1024", "Model": "flux1-dev"}),
    (WORKFLOW, "ComfyUI", "a bottle", "",
     {"Steps": "20", "Sampler": "euler", "Schedule type": "normal", "CFG scale": "8", "Seed": "7",
      "Size": "512x512", "Model": "v1-5"}),
]  # fmt: skip


@pytest.mark.parametrize(("record", "program", "prompt", "negative", "fields"), OTHERS)
def test_other_programs(
    record: dict[str, Any], program: str, prompt: str, negative: str, fields: dict[str, str]
) -> None:
    found = parse_infotext(json.dumps(record, indent=2))
    assert (found.program, found.prompt, found.negative) == (program, prompt, negative)
    assert found.fields == fields
    assert not parse_prompt(found.prompt).problems


# program -> where in a picture its text stands
PLACES: list[tuple[str, dict[str, str]]] = [
    ("A1111", {"parameters": A1111}),
    ("InvokeAI", {"invokeai_metadata": json.dumps(INVOKE), "invokeai_graph": "{}"}),
    ("SwarmUI", {"parameters": json.dumps(SWARM)}),
    ("Fooocus", {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}),
    ("ComfyUI", {"prompt": json.dumps(COMFY), "workflow": "{}"}),
    ("ComfyUI", {"workflow": json.dumps(WORKFLOW)}),
]


@pytest.mark.parametrize(("program", "chunks"), PLACES)
@pytest.mark.parametrize("international", [False, True])
def test_png_of_other_programs(
    tmp_path: Path, program: str, chunks: dict[str, str], international: bool
) -> None:
    info = PngInfo()
    for name, text in chunks.items():
        (info.add_itxt if international else info.add_text)(name, text)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    found = read_parameters(tmp_path / "a.png")
    assert found.program == program and found.prompt and found.fields["Steps"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize(
    ("program", "tag", "value"),
    [
        ("A1111", 0x9286, b"UNICODE\0" + A1111.encode("utf-16-be")),  # as piexif writes it
        ("A1111", 0x9286, b"UNICODE\0" + A1111.encode("utf-16-le")),
        ("A1111", 0x9286, b"UNICODE\0" + A1111.encode("utf-16")),
        ("A1111", 0x9286, b"ASCII\0\0\0" + A1111.encode()),
        ("SwarmUI", 0x9286, b"\0" * 8 + json.dumps(SWARM).encode()),
        ("Fooocus", 0x9286, json.dumps(FOOOCUS)),
        ("ComfyUI", 0x0110, "prompt:" + json.dumps(COMFY)),
        ("ComfyUI", 0x010F, "Workflow:" + json.dumps(WORKFLOW)),
        ("SwarmUI", 0x0110, json.dumps(SWARM)),
    ],
)
def test_exif_of_other_programs(
    tmp_path: Path, suffix: str, program: str, tag: int, value: bytes | str
) -> None:
    exif = Image.Exif()
    place: Any = exif.get_ifd(0x8769) if isinstance(value, bytes) else exif
    place[tag] = value
    path = tmp_path / f"a{suffix}"
    PICTURE.save(path, exif=exif)
    found = read_parameters(path)
    assert found.program == program and found.prompt and found.fields["Steps"]


def test_text_behind_the_pixels(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", A1111, zip=True)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    data = (tmp_path / "a.png").read_bytes()
    begin, end = data.index(b"zTXt") - 4, data.index(b"IDAT") - 4
    last = data.index(b"IEND") - 4
    moved = data[:begin] + data[end:last] + data[begin:end] + data[last:]
    (tmp_path / "b.png").write_bytes(moved)
    assert read_parameters(tmp_path / "b.png") == parse_infotext(A1111)


TRAPS = [
    "plain",
    "a\nNegative prompt: b\nc",
    "a\nSteps: 1, Seed: 2, Size: 8x8",
    'quotes " and \\ and, commas: here',
    "猫, \U0001f408 \x00 \r\n end\n\n",
    "# a comment {a|b} __c__",
    " spaces ",
    "",
]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("prompt", TRAPS)
@pytest.mark.parametrize("negative", ["", *TRAPS[1:3]])
def test_our_own_pictures(tmp_path: Path, suffix: str, prompt: str, negative: str) -> None:
    details = {"request": {"prompt": prompt, "negative_prompt": negative}, "loras": [{"x": 0.5}]}
    write = write_png if suffix == ".png" else write_exif
    path = write(PICTURE, tmp_path / f"a{suffix}", infotext(prompt, negative, FIELDS), details)
    found = read_parameters(path)
    assert (found.prompt, found.negative, found.details) == (prompt, negative, details)
    assert found.fields == SAID and found.program == "sdlora"


WORDS = st.sampled_from(
    ["a cat", "Negative prompt: b", "\n", '"', "Steps: 1", ", Seed: 2", ": ", ",", "\\", "  ", "猫"]
)
TEXTS = st.lists(WORDS | st.text(max_size=8), max_size=8).map("".join)


@settings(max_examples=60)
@given(TEXTS, TEXTS, st.dictionaries(st.from_regex(r"[A-Z][a-z]{2,8}", fullmatch=True), TEXTS))
def test_what_is_written_is_read(prompt: str, negative: str, odd: dict[str, str]) -> None:
    """Through a real file: prompts exactly, and the fields, whatever the prompts look like."""
    fields = FIELDS | odd
    details = {"request": {"prompt": prompt, "negative_prompt": negative}}
    path = Path(SCRATCH) / "a.png"
    found = read_parameters(write_png(PICTURE, path, infotext(prompt, negative, fields), details))
    assert (found.prompt, found.negative) == (prompt, negative)
    assert found.fields == {name: str(value) for name, value in fields.items() if value != ""}


@given(st.text('abc ,.:()<>[]\n"\\', max_size=60), st.text("abc, :\n", max_size=30))
def test_text_alone_is_enough_for_usual_prompts(prompt: str, negative: str) -> None:
    found = parse_infotext(infotext(prompt.strip(), negative.strip(), FIELDS))
    assert (found.prompt, found.negative) == (prompt.strip(), negative.strip())
    assert found.fields == SAID


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder for tests that hypothesis runs many times."""
    global SCRATCH
    SCRATCH = str(tmp_path_factory.mktemp("scratch"))


SCRATCH = ""


def test_exif_has_its_limit(tmp_path: Path) -> None:
    fits = {"request": {"prompt": "p"}, "filling": "x" * 50_000}
    found = read_parameters(write_exif(PICTURE, tmp_path / "a.jpg", "p", fits))
    assert found.prompt == "p" and found.details == fits
    big = {**fits, "more": "x" * 20_000}
    for path, text, details in (
        ("b.jpg", "x" * 40_000, None),
        ("c.gif", "x", None),
        ("d.webp", "p", big),
    ):
        with pytest.raises(SettingsError, match=r"a PNG can"):
            write_exif(PICTURE, tmp_path / path, text, details)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_what_says_nothing(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(DataError, match="says nothing"):
        read_parameters(tmp_path / "a.png")
    for name, data in (("b.png", b"no picture"), ("c.jpg", b""), ("d.gif", b"GIF89a")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="cannot be read as a picture"):
            read_parameters(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_parameters(tmp_path / "none.png")


def test_damaged_pictures(tmp_path: Path) -> None:
    """Any bytes changed: an answer or the named error, and soon."""
    details = {"request": {"prompt": "p"}}
    text = infotext("p", "n", FIELDS)
    paths = [
        write_png(PICTURE, tmp_path / "a.png", text, details),
        write_exif(PICTURE, tmp_path / "a.jpg", text, details),
        write_exif(PICTURE, tmp_path / "a.webp", text, details),
    ]
    dice = random.Random(0)
    damaged = tmp_path / "damaged"
    for path in paths:
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole[: dice.choice((len(whole), dice.randrange(len(whole))))])
            for _ in range(dice.randrange(4) if data else 0):
                data[dice.randrange(len(data))] = dice.randrange(256)
            damaged.write_bytes(data)
            try:
                read_parameters(damaged)
            except DataError as error:
                assert "damaged" in str(error)


NAMES = st.sampled_from(
    [*COMFY["3"]["inputs"], *SWARM["sui_image_params"], *FOOOCUS, *INVOKE, "class_type", "inputs",
     "nodes", "links", "type", "id", "name", "link", "widgets_values", "on", "lora", "strength",
     "guider", "sampler", "3", "4"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.sampled_from(["a", "3", "KSampler", 10**400]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(NAMES, values, max_size=6),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(NAMES, JSON, max_size=8), st.sampled_from([INVOKE, SWARM, FOOOCUS, COMFY]))
def test_any_json(record: dict[str, Any], known: dict[str, Any]) -> None:
    parse_infotext(json.dumps(record))
    parse_infotext(json.dumps(known | record))
    node = {"class_type": "KSampler", "inputs": COMFY["3"]["inputs"] | record}
    found = parse_infotext(json.dumps(COMFY | {"3": node}))
    assert found.program in ("ComfyUI", "InvokeAI", "SwarmUI", "Fooocus", "")


@pytest.mark.parametrize(
    "unit", ["a b ", "a: ", 'a: "', "a: [", ",", "a, ", 'a: "\\', "\n", "Negative prompt:", "a:[1,"]
)
def test_time_is_linear(unit: str) -> None:
    assert is_linear(lambda n: parse_infotext(unit * n), 10_000)


def test_loras_are_renamed_by_their_hash() -> None:
    hashes = parse_hashes("neon: 1a2b, my lora: 3c4d, a=b: 5e6f: 0.8, gone: 7777")
    assert hashes == {"neon": "1a2b", "my lora": "3c4d", "a=b": "5e6f", "gone": "7777"}
    known = {"1a2b": "glow (v2)", "3c4d": "my lora", "5e6f": "ab"}.get
    prompt = (
        "a, <lora:neon:0.8> <lora:neon> lora:neon:0.5. <LYCO: my lora :1:te=0>, <lora:a=b:1@0,0@1>"
        " <lora:gone:1> <foo:neon:1> neon:1"
    )
    assert rename_loras(prompt, hashes, known) == (
        "a, <lora:glow (v2):0.8> <lora:glow (v2)> <lora:glow (v2):0.5>. <LYCO: my lora :1:te=0>, "
        "<lora:ab:1@0,0@1> <lora:gone:1> <foo:neon:1> neon:1"
    )
    assert rename_loras("x" + prompt, {}, known) == "x" + prompt
