"""Serve a model repository on loopback, as the model hub does for huggingface_hub."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

from openklein.engine.catalog import KLEIN_4B
from openklein.engine.hub import download, list_files
from openklein.engine.manifest import Manifest
from openklein.engine.weights import installed
from openklein.errors import OpenKleinError

REPOSITORY = "black-forest-labs/FLUX.2-klein-4B"
assert KLEIN_4B.source is not None
COMMIT = KLEIN_4B.source.revision  # which is what a plain pull asks for
NEXT_COMMIT = "2e" * 20
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"


def content(seed: int, size: int) -> bytes:
    return hashlib.shake_256(str(seed).encode()).digest(size)


def klein_files() -> dict[str, bytes]:
    """Give a repository as its makers fill it, small: what we read, and what we must not."""
    return {
        "model_index.json": b'{"_class_name": "Flux2KleinPipeline"}',
        "tokenizer/tokenizer.json": b"{}" * 50,
        "tokenizer/tokenizer_config.json": b"{}",
        "text_encoder/config.json": b'{"hidden_size": 2560}',
        "text_encoder/model-00001-of-00002.safetensors": content(1, 3000),
        "text_encoder/model-00002-of-00002.safetensors": content(2, 5000),
        "text_encoder/model.safetensors.index.json": b'{"weight_map": {}}',
        "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": content(3, 40_000),
        "vae/config.json": b'{"latent_channels": 32}',
        "vae/diffusion_pytorch_model.safetensors": content(4, 2000),
        # never to be fetched
        "README.md": b"# A model",
        "flux-2-klein-4b.safetensors": content(3, 40_000),
        "text_encoder/pytorch_model.bin": b"a pickle",
        "transformer/code.py": b"import os",
        "vae/extra/more.safetensors": b"deeper",
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the bytes of a file."""

    path: str
    first_byte: int
    commit: str
    token: str | None


@dataclass(slots=True)
class ModelHub:
    """A hub with one repository; tests change its fields to make it misbehave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=klein_files)
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    listed_sizes: dict[str, int] = field(default_factory=dict)  # where the listing lies
    sent: dict[str, bytes] = field(default_factory=dict)  # where other bytes are sent than listed
    cut_after: dict[str, int] = field(default_factory=dict)  # path: bytes, then the connection ends, once
    cut_statuses: dict[str, tuple[int, str]] = field(default_factory=dict)  # path: its status once it was cut
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)  # path or "": status, X-Error-Code
    needs_token: str | None = None
    asked: list[Asked] = field(default_factory=list)

    def listing(self, commit: str) -> bytes:
        siblings = [self.describe(path, body) for path, body in self.files.items()]
        return json.dumps({"id": REPOSITORY, "sha": commit, "siblings": siblings}).encode()

    def describe(self, path: str, body: bytes) -> dict[str, object]:
        size = self.listed_sizes.get(path, len(body))
        blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
        row: dict[str, object] = {"rfilename": path, "size": size, "blobId": blob}
        if not path.endswith(".json") or path == "tokenizer/tokenizer.json":
            row["lfs"] = {"size": size, "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
        return row

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    """Answer /api/models/{repository}/revision/{revision} and /{repository}/resolve/{commit}/{path}."""

    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def do_GET(self) -> None:
        url = urlsplit(unquote(self.path))
        token = self.headers.get("Authorization")
        if listing := re.fullmatch(f"/api/models/{re.escape(REPOSITORY)}/revision/(.+)", url.path):
            assert parse_qs(url.query)["blobs"] == ["true"]
            self.send_listing(listing[1], token)
        elif found := re.fullmatch(f"/{re.escape(REPOSITORY)}/resolve/([0-9a-f]{{40}})/(.+)", url.path):
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            self.hub.asked.append(Asked(found[2], first, found[1], token))
            self.send_file(found[2], first, token)
        else:
            self.refuse(404, "RepoNotFound")

    def send_listing(self, revision: str, token: str | None) -> None:
        known = {**self.hub.commits, **{commit: commit for commit in self.hub.commits.values()}}
        if "" in self.hub.statuses:
            self.refuse(*self.hub.statuses[""])
        elif revision not in known:
            self.refuse(404, "RevisionNotFound")
        else:
            self.send_body(200, self.hub.listing(known[revision]), {})

    def send_file(self, path: str, first: int, token: str | None) -> None:
        if self.hub.needs_token and token != f"Bearer {self.hub.needs_token}":
            return self.refuse(403 if token else 401, "GatedRepo")
        if path in self.hub.statuses:
            return self.refuse(*self.hub.statuses[path])
        body = self.hub.sent.get(path, self.hub.files[path])
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        cut = self.hub.cut_after.pop(path, None)
        self.send_body(206 if first else 200, body[first:], headers, cut)
        if cut and path in self.hub.cut_statuses:
            self.hub.statuses[path] = self.hub.cut_statuses.pop(path)

    def refuse(self, status: int, code: str) -> None:
        self.send_body(status, b'{"error": "no"}', {"X-Error-Code": code})

    def send_body(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = cut is not None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(hub: ModelHub) -> Iterator[ModelHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point huggingface_hub at a hub, as its variables would have done when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # so that small files arrive in pieces
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def list_klein(revision: str = "main") -> Manifest:
    assert KLEIN_4B.source is not None
    return list_files(KLEIN_4B, replace(KLEIN_4B.source, revision=revision))


def pull(folder: Path, revision: str = "main") -> Manifest:
    """Do what the command does."""
    manifest = list_klein(revision)
    download(manifest, folder)
    return manifest


def fail_to_pull(folder: Path, revision: str = "main") -> str:
    """Give the sentence that a pull ends with; nothing may count as installed after it."""
    with pytest.raises(OpenKleinError) as failure:
        pull(folder, revision)
    assert not installed(KLEIN_4B.id, folder.parent)
    sentence = str(failure.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parts_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))
