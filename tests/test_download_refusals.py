"""Each refusal of a server has a sentence of its own, and a token is in none of them."""

import gzip
import logging
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from downloader import CDN, CONTENT, FILE, Downloader, FakeClock, left
from model_server import (
    COMMIT,
    TOKEN,
    Fault,
    ModelServer,
)
from sdlora.assets.download import download
from sdlora.assets.http_client import HttpClient
from sdlora.assets.http_errors import Resource
from sdlora.assets.transfer import DownloadSession
from sdlora.errors import DownloadError, SettingsError
from sdlora.settings.download import DownloadSettings
from sdlora.workspace import Workspace

PAGE = b"<!DOCTYPE html><html><body>Log in</body></html>"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (PAGE, "text/html; charset=utf-8", "a web page in place of"),
        (PAGE, "application/octet-stream", "a web page in place of"),
        (b'{"error": "Unauthorized", "message": "log in"}', "application/json", "does not begin"),
        (b"x", "application/octet-stream", "does not begin as such a file does"),
        (b"PK\x03\x04" + b"\0" * 999, "application/octet-stream", "does not begin"),
        (CONTENT[:-5], "application/octet-stream", "is no whole safetensors file"),
        (CONTENT + b"12345", "application/octet-stream", "is no whole safetensors file"),
    ],
)
def test_what_is_no_model_is_refused(
    server: ModelServer, downloads: Downloader, content: bytes, kind: str, said: str
) -> None:
    server.add(FILE, content, content_type=kind)
    assert said in downloads.refused(server.url + FILE)
    assert not left(downloads.space.models)


def test_a_page_that_comes_after_the_first_look(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT, Fault(ignore_range=True))
    server.files[FILE].faults.append(Fault())

    def swap(at: int) -> None:
        server.files[FILE].content = PAGE * 100

    server.on_chunk = swap
    said = downloads.refused(server.url + FILE)
    assert "web page" in said or "another file" in said or "does not begin" in said
    assert not left(downloads.space.models)


def test_gguf_and_a_name_from_the_server(server: ModelServer, downloads: Downloader) -> None:
    disposition = {"Content-Disposition": "attachment; filename*=UTF-8''..%2F..%2Fq4%20k.gguf"}
    server.add("/get", b"GGUF" + b"\3" * 99, headers=disposition)
    assert downloads.get(server.url + "/get?id=5") == downloads.space.models / "q4 k.gguf"
    server.add("/get", CONTENT)
    assert downloads.get(server.url + "/get?id=5").name == "get.safetensors"


STATUSES = [
    (Fault(401), "to those who log in"),
    (Fault(403), "link may have expired"),
    (Fault(404), "it is gone, or the link is wrong"),
    (Fault(410), "(410): it is gone"),
    (Fault(418), "answers the request for ink.safetensors with 418"),
    (Fault(302), "with 302"),
]


@pytest.mark.parametrize(("fault", "said"), STATUSES)
def test_each_refusal_has_a_sentence(
    server: ModelServer, downloads: Downloader, fault: Fault, said: str
) -> None:
    server.add(FILE, CONTENT, fault)
    assert said in downloads.refused(server.url + FILE)


def test_login_and_terms_are_told_apart(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT}, gated="auto")
    file = server.files[f"/me/ink/resolve/{COMMIT}/ink.safetensors"]
    gated = {"X-Error-Code": "GatedRepo"}
    file.token, file.refusal = TOKEN, Fault(401, gated)
    said = downloads.refused("me/ink")
    assert f"me/ink is gated: log in and accept its terms at {server.hub}/me/ink" in said
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_account")
    file.refusal = Fault(403, gated)
    assert "your account may not read it yet: accept its terms at" in downloads.refused("me/ink")
    file.refusal = Fault(401)
    assert "does not accept your token" in downloads.refused("me/ink")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert downloads.get("me/ink").read_bytes() == CONTENT
    file.refusal, file.token = Fault(401, {"X-Error-Code": "RepoNotFound"}), "other"
    (downloads.space.models / "ink.safetensors").unlink()
    assert "there is no me/ink on Hugging Face, or it is private" in downloads.refused("me/ink")
    assert "there is no me/other at" in downloads.refused("me/other")
    server.add(
        "/api/models/me/ink/revision/v9", b"", Fault(404, {"X-Error-Code": "RevisionNotFound"})
    )
    assert "has no such revision" in downloads.refused("me/ink@v9")


def test_civitai_refusals(server: ModelServer, downloads: Downloader) -> None:
    server.add_civitai(456, CONTENT)
    server.files["/api/download/models/456"].token = "x"
    said = downloads.refused("civitai:456")
    assert "Civitai gives Ink v2 only to those who log in (401)" in said
    assert "CIVITAI_API_TOKEN" in said and "civitai_token" in said
    server.files["/api/download/models/456"].refusal = Fault(403)
    assert "early access" in downloads.refused("civitai:456")
    assert "there is no model version 457" in downloads.refused("civitai:457")


def test_nobody_answers_there(downloads: Downloader, server: ModelServer) -> None:
    server.close()
    assert "refuses the connection: check the address" in downloads.refused(server.url + FILE)
    assert downloads.clock.waits == 0, "nothing has come that would be worth waiting for"


def test_offline_is_obeyed(
    downloads: Downloader, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off by HF_HUB_OFFLINE" in downloads.refused("me/ink")
    assert not server.requests


def test_a_proxy_is_used(
    downloads: Downloader, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("http://models.example/ink.safetensors", CONTENT)  # as a proxy is asked
    monkeypatch.setenv("HTTP_PROXY", server.url)
    assert downloads.get("http://models.example/ink.safetensors").read_bytes() == CONTENT


# Tokens


def test_a_token_goes_to_its_own_host_alone_and_nowhere_else(
    server: ModelServer,
    downloads: Downloader,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine localhost login me password {TOKEN}9\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", "hf_another_SECRET")
    server.add_civitai(456, CONTENT)
    server.files["/api/download/models/456"].token = TOKEN
    server.files["/api/download/models/456"].faults.extend(
        [Fault(307, {"Location": f"{server.other}{CDN}?X-Amz-Signature=sig"})] * 9
    )
    server.add(CDN, CONTENT, Fault(cut_at=90_000), Fault(503), Fault(cut_at=5_000))
    path = downloads.get(f"{server.civitai}/models/9?modelVersionId=456&token={TOKEN}")
    assert path.read_bytes() == CONTENT and path.parent == downloads.space.loras
    asked, stored = server.of("/api/download/models/456"), server.of(CDN)
    assert len(stored) > 3 and {r.host for r in stored} == {server.other.removeprefix("http://")}
    assert all("authorization" not in request.headers for request in stored)
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in asked)
    texts = [downloads.text(), caplog.text]
    texts += [f.read_text("utf-8", "replace") for f in downloads.space.root.rglob("*.json")]
    texts += [f.read_text("utf-8", "replace") for f in downloads.space.root.rglob("*.info")]
    assert len(texts) > 3 and not any("SECRET" in text for text in texts)
    assert not any("X-Amz-Signature" in text for text in [downloads.text(), *texts[2:]])
    assert not any(TOKEN in request.path for request in server.requests)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 418])
def test_no_error_repeats_a_token(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    server.add_civitai(456, CONTENT)
    server.files["/api/download/models/456"].faults.extend([Fault(status)] * 9)
    said = downloads.refused(f"{server.civitai}/api/download/models/456?token={TOKEN}")
    assert TOKEN not in said + downloads.text()


def test_a_token_that_is_none_is_named_and_not_repeated(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET\nX-Other: 1")
    said = downloads.refused("me/ink")
    assert "HF_TOKEN holds something that is no token" in said and "SECRET" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CONFIG_HOME")
def test_a_token_from_a_file(
    server: ModelServer, downloads: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_civitai(456, CONTENT)
    server.files["/api/download/models/456"].token = TOKEN
    (tmp_path / "config/sdlora").mkdir(parents=True)
    (tmp_path / "config/sdlora/civitai_token").write_text(f"{TOKEN}\n", encoding="utf-8")
    assert downloads.get("civitai:456").read_bytes() == CONTENT


def test_redirects_end_and_stay_encrypted(
    server: ModelServer, downloads: Downloader, space: Workspace
) -> None:
    server.redirect(FILE, FILE)
    assert "in circles" in downloads.refused(server.url + FILE)
    with HttpClient() as client, pytest.raises(DownloadError, match="not encrypted"):
        client._redirected("https://a.example/x", "http://a.example/x", Resource("x", ""))
    with HttpClient() as client:
        session = DownloadSession(client, FakeClock())
        settings = DownloadSettings.from_values({"source": "http://a.example/x.safetensors"})
        with pytest.raises(DownloadError, match="without encryption"):
            list(download(settings, space, session))


def test_settings_hold_no_password() -> None:
    settings = DownloadSettings.from_values(
        {"source": f"https://civitai.com/api/download/models/1?token={TOKEN}&type=Model"}
    )
    assert settings.source == "https://civitai.com/api/download/models/1?type=Model"
    with pytest.raises(SettingsError, match="has a name or a password in it") as caught:
        DownloadSettings.from_values({"source": "https://me:SECRET@a.example/x.safetensors"})
    assert "SECRET" not in str(caught.value)
    assert re.search(r"\?sig=1$", DownloadSettings(source="https://a.example/x?sig=1").source)


def test_a_setting_that_would_not_count_is_refused(
    server: ModelServer, downloads: Downloader
) -> None:
    assert "is for repositories of Hugging Face" in downloads.refused("civitai:5", revision="v1")
    assert "names no other revision" in downloads.refused("me/ink@v1", revision="v2")
    assert "several files" in downloads.refused(server.url + FILE, file="ink.safetensors")
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    assert downloads.get("me/ink@v1", revision="v1").name == "ink.safetensors"
    assert downloads.get("me/ink", revision="refs/pr/1").name == "ink.safetensors"


def test_a_proxy_that_cannot_be_used(
    downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert "the proxy of this computer cannot be used" in downloads.refused("me/ink")


def test_data_that_is_packed_unasked_is_read(server: ModelServer, downloads: Downloader) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    listing = server.files["/api/models/me/ink/revision/main"]
    listing.content = gzip.compress(listing.content)
    listing.headers["Content-Encoding"] = "gzip"
    assert downloads.get("me/ink").read_bytes() == CONTENT
    (downloads.space.models / "ink.safetensors").unlink()
    file = server.files[f"/me/ink/resolve/{COMMIT}/ink.safetensors"]
    file.headers["Content-Encoding"] = "gzip"
    assert "compressed, which was not asked for" in downloads.refused("me/ink")
