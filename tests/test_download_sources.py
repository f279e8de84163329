"""What a text means as a download, and which files of a repository or version are taken."""

import json
from pathlib import Path
from typing import Any

import pytest

from downloader import CONTENT, Downloader, left
from model_server import COMMIT, Fault, ModelServer, safetensors_bytes, sha256
from sdlora.assets.diffusers_files import needed_files
from sdlora.assets.download_sources import (
    CivitaiSource,
    DirectSource,
    HubSource,
    ModelSource,
    parse_source,
)
from sdlora.assets.sites import civitai, hugging_face
from sdlora.errors import DownloadError
from sdlora.models.registry import detect_family
from sdlora.workspace import STARTER_MODEL

HUB = "https://huggingface.co"
RED = "https://civitai.red"
SOURCES: list[tuple[str, ModelSource]] = [
    ("owner/name", HubSource("owner/name")),
    (" owner/na.me-1 ", HubSource("owner/na.me-1")),
    ("owner/name@v1.0", HubSource("owner/name", "v1.0")),
    ("owner/name@refs/pr/3", HubSource("owner/name", "refs/pr/3")),
    ("owner/name:a/b.safetensors", HubSource("owner/name", "", "a/b.safetensors")),
    ("owner/name@dev:a/b c.safetensors", HubSource("owner/name", "dev", "a/b c.safetensors")),
    (f"{HUB}/owner/name", HubSource("owner/name")),
    ("https://hf.co/owner/name/", HubSource("owner/name")),
    (f"{HUB}/owner/name/tree/dev", HubSource("owner/name", "dev")),
    (f"{HUB}/owner/name/tree/main/unet", HubSource("owner/name", "main")),
    (
        f"{HUB}/owner/name/blob/main/a/b.safetensors",
        HubSource("owner/name", "main", "a/b.safetensors"),
    ),
    (
        f"{HUB}/owner/name/resolve/refs%2Fpr%2F1/b.safetensors?download=true",
        HubSource("owner/name", "refs/pr/1", "b.safetensors"),
    ),
    (
        f"{HUB}/owner/name/resolve/refs/pr/1/b%20c.safetensors",
        HubSource("owner/name", "refs/pr/1", "b c.safetensors"),
    ),
    ("civitai:456", CivitaiSource("https://civitai.com", 456)),
    ("CIVITAI:456", CivitaiSource("https://civitai.com", 456)),
    (
        "https://civitai.com/models/123?modelVersionId=456",
        CivitaiSource("https://civitai.com", 456, 123),
    ),
    (f"{RED}/models/123/a-title?modelVersionId=456", CivitaiSource(RED, 456, 123)),
    ("https://civitai.com/models/123", CivitaiSource("https://civitai.com", 0, 123)),
    ("https://civitai.com/api/download/models/456", CivitaiSource("https://civitai.com", 456)),
    ("https://civitai.com/api/v1/model-versions/456", CivitaiSource("https://civitai.com", 456)),
    (
        "https://civitai.com/api/download/models/456?fileId=7",
        CivitaiSource("https://civitai.com", 456, file_id=7),
    ),
    (
        "https://civitai.com/api/download/models/456?type=Model&format=SafeTensor&fp=fp16",
        CivitaiSource(
            "https://civitai.com",
            456,
            traits={"type": "Model", "format": "SafeTensor", "fp": "fp16"},
        ),
    ),
    (
        "https://a.example/x/y.safetensors?sig=1",
        DirectSource("https://a.example/x/y.safetensors?sig=1"),
    ),
    ("https://a.example/get/5", DirectSource("https://a.example/get/5")),
    ("https://a.example/m.GGUF", DirectSource("https://a.example/m.GGUF")),
]


@pytest.mark.parametrize(("text", "meaning"), SOURCES)
def test_a_source_is_understood(text: str, meaning: ModelSource) -> None:
    assert parse_source(text, (hugging_face(), civitai())) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", "names nothing to download"),
        ("../../etc/passwd", "names nothing to download"),
        ("a/b/c", "names nothing to download"),
        ("civitai:abc", "names nothing to download"),
        ("ftp://a.example/x.safetensors", "names nothing to download"),
        (f"{HUB}/datasets/owner/name", "is no model's"),
        (f"{HUB}/owner", "is no model's"),
        ("https://civitai.com/images/5", "is no model's"),
        ("http://civitai.com/models/5", "begin the address with https"),
        ("https://a.example/x.ckpt", "can hold a program"),
        ("https://a.example/x.pth?y", "can hold a program"),
        ("https://a.example/page.html", "is no model that can be downloaded"),
        ("https://[bad/x.safetensors", "no address of a web page"),
    ],
)
def test_a_text_that_names_nothing(text: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        parse_source(text, (hugging_face(), civitai()))


def test_a_mirror_named_by_the_user_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVITAI_ENDPOINT", "https://mirror.example/")
    source = parse_source(f"{RED}/models/1?modelVersionId=2", (hugging_face(), civitai()))
    assert source == CivitaiSource("https://mirror.example", 2, 1)


# Hugging Face


def test_one_file_of_a_repository(server: ModelServer, downloads: Downloader) -> None:
    other = safetensors_bytes(seed=5)
    files = {
        "a.safetensors": CONTENT,
        "sub/b.safetensors": other,
        "c.ckpt": b"x",
        "README.md": b"#",
    }
    server.add_repository("me/two", files, cardData={"license": "mit", "base_model": ["x/y"]})
    assert downloads.get("me/two").name == "a.safetensors", "the only one that is not in a folder"
    assert downloads.get("me/two:sub/b.safetensors", kind="lora").read_bytes() == other
    assert downloads.get("me/two@v1", file="b.safetensors", kind="vae").parent.name == "vae"
    row = json.loads((downloads.space.models / "a.source.json").read_text("utf-8"))
    assert row["source"] == f"me/two@{COMMIT}:a.safetensors" and row["version"] == COMMIT
    assert (row["claimed"]["license"], row["claimed"]["base_model"]) == ("mit", "x/y")
    assert "others can hold a program" in downloads.refused("me/two:c.ckpt")
    refused = downloads.refused("me/two:d.safetensors")
    assert "has no one file 'd.safetensors'" in refused and "a.safetensors (0.2 MiB)" in refused
    server.add_repository("me/many", {"a.safetensors": CONTENT, "b.safetensors": other})
    assert "has several files; say which: a.safetensors" in downloads.refused("me/many")
    server.add_repository("me/none", {"a.bin": b"x"})
    assert "has no model that can be downloaded" in downloads.refused("me/none")


def test_a_file_of_a_usual_name_gets_that_of_its_repository(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add_repository(
        "me/my-style", {"pytorch_lora_weights.safetensors": CONTENT}, tags=["lora", "diffusers"]
    )
    assert downloads.get("me/my-style") == downloads.space.loras / "my-style.safetensors"


NAMES = [
    "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md",
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16.bin", "unet/sub/other.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
    "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json", "tokenizer/vocab.json",
    "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json", "safety_checker/model.safetensors",
    "unet/../../evil.json",
]  # fmt: skip
COMPONENTS = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]


def test_a_diffusers_model_is_taken_without_doubles() -> None:
    half = needed_files(NAMES, COMPONENTS, "fp16")
    assert {path: place for path, place in half.items() if path != place} == {
        "unet/diffusion_pytorch_model.fp16.safetensors": "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.fp16-00001-of-00002.safetensors": "text_encoder/model-00001-of-00002."
        "safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors": "text_encoder/model-00002-of-00002."
        "safetensors",
        "text_encoder/model.safetensors.index.fp16.json": "text_encoder/model.safetensors."
        "index.json",
    }
    assert "vae/diffusion_pytorch_model.safetensors" in half, "there is no other"
    full = needed_files(NAMES, COMPONENTS, "full")
    assert full.keys() == set(full.values()) and "text_encoder/model.safetensors" in full
    for taken in (half, full):
        assert not [p for p in taken if p.endswith((".bin", ".ckpt", ".md")) or "evil" in p]
        assert not [p for p in taken if "non_ema" in p or "safety_checker" in p or "sub/" in p]
        assert {"tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= taken.keys()


def test_a_component_as_a_pickle_alone_is_refused() -> None:
    names = [name for name in NAMES if name != "vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(DownloadError, match="vae is there as diffusion_pytorch_model.bin only"):
        needed_files([*names, "vae/diffusion_pytorch_model.bin"], COMPONENTS, "fp16")


def starter_files() -> dict[str, bytes]:
    """The starter model as a repository, its weights as fp16 variants, with what others have."""
    files: dict[str, bytes] = {}
    for path in STARTER_MODEL.rglob("*"):
        if path.is_file():
            name = path.relative_to(STARTER_MODEL).as_posix()
            if name.startswith("unet/") and name.endswith(".safetensors"):
                files[name] = safetensors_bytes(seed=3)  # not to be taken
                name = name.replace(".safetensors", ".fp16.safetensors")
            files[name] = path.read_bytes()
    index = json.loads(files["model_index.json"])
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    files["model_index.json"] = json.dumps(index).encode()
    extra = {"safety_checker/model.safetensors": CONTENT, "unet/diffusion_pytorch_model.bin": b"x"}
    return {**files, **extra, "all-in-one.safetensors": CONTENT}


def test_a_diffusers_folder_is_downloaded_whole_and_opens(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add_repository("me/starter-copy", starter_files())
    unet = f"/me/starter-copy/resolve/{COMMIT}/unet/diffusion_pytorch_model.fp16.safetensors"
    server.files[unet].faults.extend([Fault(cut_at=100_000), *[Fault(502)] * 8])
    assert "(502)" in downloads.refused("me/starter-copy")
    (partial,) = downloads.space.models.iterdir()
    assert partial.name == f".starter-copy-{COMMIT[:12]}.partial"
    assert downloads.space.model_names() == ["starter"], "a half model is not on offer"
    done = {path.relative_to(partial).as_posix() for path in partial.rglob("*.json")}
    done = {path for path in done if not path.endswith(".part.json")} - {"model_index.json"}
    server.requests.clear()
    server.files[unet].faults.clear()
    folder = downloads.get("me/starter-copy")
    assert folder == downloads.space.models / "starter-copy" and list(folder.parent.iterdir()) == [
        folder
    ]
    again = {r.path.rpartition("/")[2] for r in server.requests if "/resolve/" in r.path}
    assert done and not (done & again) - {"model_index.json"}, (
        "what is whole is not asked for again"
    )
    assert server.ranges(unet) == ["bytes=100000-"]
    assert detect_family(folder) == detect_family(STARTER_MODEL)
    for path in STARTER_MODEL.rglob("*.safetensors"):
        copy = folder / path.relative_to(STARTER_MODEL)
        assert sha256(copy.read_bytes()) == sha256(path.read_bytes())
    assert not [p for p in left(folder) if "fp16" in p or p.endswith((".bin", ".lock"))]
    assert json.loads((folder / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert json.loads((folder / "source.json").read_text())["source"] == f"me/starter-copy@{COMMIT}"
    assert downloads.get("me/starter-copy") == folder and "here already" in downloads.text()
    assert downloads.space.model_names() == ["starter", "starter-copy"]


def test_indexes_of_shards_name_the_plain_files(server: ModelServer, downloads: Downloader) -> None:
    shards = {"weight_map": {"w": "model.fp16-00001-of-00001.safetensors"}}
    files = {
        "model_index.json": json.dumps({"_class_name": "X", "text_encoder": ["a", "b"]}).encode(),
        "text_encoder/model.safetensors.index.fp16.json": json.dumps(shards).encode(),
        "text_encoder/model.fp16-00001-of-00001.safetensors": CONTENT,
    }
    server.add_repository("me/sharded", files)
    folder = downloads.get("me/sharded", output="mine")
    index = json.loads((folder / "text_encoder/model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"]["w"] == "model-00001-of-00001.safetensors"
    assert (folder / "text_encoder" / index["weight_map"]["w"]).read_bytes() == CONTENT


# Civitai


def test_a_model_version(server: ModelServer, downloads: Downloader) -> None:
    server.add_civitai(456, CONTENT)
    path = downloads.get("https://civitai.com/models/9?modelVersionId=456")
    assert path == downloads.space.loras / "ink.safetensors" and path.read_bytes() == CONTENT
    row = json.loads((path.parent / "ink.source.json").read_text("utf-8"))
    assert (row["source"], row["version"], row["verified"]) == ("civitai:456", "456", True)
    assert row["claimed"]["trained_words"] == ["ink wash"]
    assert row["claimed"]["base_model"] == "SD 1.5"
    info = json.loads((path.parent / "ink.civitai.info").read_text("utf-8"))
    assert (info["baseModel"], info["trainedWords"]) == ("SD 1.5", ["ink wash"])
    assert "base model (its page says)" in downloads.text()


def other_file(**values: Any) -> dict[str, Any]:
    return {
        "id": 78, "name": "ink-fp8.safetensors", "type": "Pruned Model",
        "metadata": {"format": "SafeTensor", "fp": "fp8"}, "hashes": {}, **values,
    }  # fmt: skip


def test_the_file_of_a_version_is_chosen(server: ModelServer, downloads: Downloader) -> None:
    record = server.add_civitai(456, CONTENT)
    pickle = {"id": 79, "name": "ink.ckpt", "type": "Model", "primary": True}
    record["files"][0]["primary"] = False
    record["files"] = [pickle, other_file(), *record["files"]]
    server.add_json("/api/v1/model-versions/456", record)
    second = safetensors_bytes(seed=8)
    server.add("/api/download/models/456?fileId=78", second)
    server.add("/api/download/models/456?fileId=77", CONTENT)
    base = "https://civitai.com/api/download/models/456"
    assert downloads.get(f"{base}?fileId=77").read_bytes() == CONTENT
    for source, values in (
        ("civitai:456", {"file": "ink-fp8.safetensors"}),
        (f"{base}?fileId=78", {}),
        (f"{base}?fp=fp8", {}),
    ):
        assert downloads.get(source, **values).read_bytes() == second
    assert "others can hold a program" in downloads.refused("civitai:456", file="ink.ckpt")
    refused = downloads.refused("civitai:456", file="ink-fp9.safetensors")
    assert "Did you mean ink-fp8.safetensors" in refused
    record["files"] = [pickle]
    server.add_json("/api/v1/model-versions/456", record)
    assert "has no file to take" in downloads.refused("civitai:456")


def test_the_newest_version_of_a_model(server: ModelServer, downloads: Downloader) -> None:
    server.add_civitai(456, CONTENT, model={"name": "Ink", "type": "Checkpoint"})
    server.add_json("/api/v1/models/9", {"modelVersions": [{"id": 456}, {"id": 123}]})
    assert downloads.get("https://civitai.com/models/9").parent == downloads.space.models
    server.add_json("/api/v1/models/8", {"modelVersions": []})
    assert "has no version to download" in downloads.refused("https://civitai.com/models/8")


KINDS = [
    ("Checkpoint", "models"), ("LORA", "loras"), ("LoCon", "loras"), ("DoRA", "loras"),
    ("TextualInversion", "embeddings"), ("VAE", "vae"), ("Upscaler", "upscalers"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "folder"), KINDS)
def test_a_model_goes_where_its_kind_belongs(
    server: ModelServer, downloads: Downloader, kind: str, folder: str
) -> None:
    server.add_civitai(5, CONTENT, model={"name": "x", "type": kind})
    assert downloads.get("civitai:5").parent == downloads.space.root / folder


def test_a_kind_that_is_not_used(server: ModelServer, downloads: Downloader) -> None:
    server.add_civitai(5, CONTENT, model={"name": "x", "type": "Workflows"})
    assert "is of the type 'Workflows'" in downloads.refused("civitai:5")
    assert downloads.get("civitai:5", kind="lora").parent == downloads.space.loras


HOSTILE: list[Any] = [
    None,
    [],
    {"id": 5},
    {"id": 5, "files": "x", "model": 3},
    {"id": 5, "files": [None, {"name": 3}], "model": {"type": ["LORA"]}},
    {"id": 6, "files": []},
    "text",
]


@pytest.mark.parametrize("record", HOSTILE)
def test_a_strange_record_is_refused(
    server: ModelServer, downloads: Downloader, record: Any
) -> None:
    server.add_json("/api/v1/model-versions/5", record)
    assert downloads.refused("civitai:5")
    server.add_json("/api/models/me/ink/revision/main", record)
    assert downloads.refused("me/ink")
    rows = [record, {"rfilename": 3}, {"rfilename": "a.safetensors", "lfs": record}]
    server.add_json(
        "/api/models/me/ink/revision/main", {"sha": COMMIT, "siblings": rows, "cardData": record}
    )
    assert "there is no me/ink at" in downloads.refused("me/ink")


def test_a_hostile_name_stays_in_its_folder(server: ModelServer, downloads: Downloader) -> None:
    for number, name in enumerate(
        ["../../evil.safetensors", "C:\\x\\con.safetensors", "a\0b.safetensors", ".safetensors"]
    ):
        record = server.add_civitai(number + 10, safetensors_bytes(seed=number))
        record["files"][0]["name"] = name
        server.add_json(f"/api/v1/model-versions/{number + 10}", record)
        path = downloads.get(f"civitai:{number + 10}")
        assert path.parent == downloads.space.loras and path.suffix == ".safetensors"
        assert not path.name.startswith(".") and path.name.isprintable()
    assert not list(Path(downloads.space.root.parent).glob("evil*"))
