"""Tiny archives, a recipe that expects them, and a web server whose connections break on demand."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cifar10_archives import Images, binary_members, recipe_for, write_tar

from mobilenet_pipeline import config

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@pytest.fixture
def images() -> Images:
    return Images()


@pytest.fixture
def recipe(images: Images) -> config.Recipe:
    """The recipe `cifar10`, but expecting `images`."""
    return recipe_for(images, config.load_recipe("cifar10", PARAMS))


@pytest.fixture
def archive(tmp_path: Path, images: Images) -> Path:
    """The binary archive with `images`."""
    return write_tar(tmp_path / "cifar.tar.gz", binary_members(images))


@pytest.fixture
def configured_archive(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, which CIFAR10_ARCHIVE names."""
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(archive))
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the dataset."""
    return tmp_path / "data" / "cifar10"


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's archive or cache."""
    monkeypatch.delenv("CIFAR10_ARCHIVE", raising=False)
    monkeypatch.setenv("MOBILENET_PIPELINE_CACHE", str(tmp_path / "cache"))


class Server(ThreadingHTTPServer):
    """Serves `content` at any path, with ranges; an answer breaks off after as many bytes as `breaks` says next."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.tag, self.breaks, self.ranges = b"", '"one"', [], []
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-10-binary.tar.gz"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        resumed = wanted is not None and self.headers.get("If-Range") == self.server.tag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if resumed else 0
        rest = self.server.content[start:]
        if resumed and not rest:
            self.send_error(416)
            return
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks.pop(0)] if self.server.breaks else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()
