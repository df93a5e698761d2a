"""The demo page in headless Chromium, before a stub of the service that says what a test tells it to."""

import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = Path(__file__).resolve().parents[2] / "serving" / "page.html"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Neither the alphabet's order nor that of the probabilities, so that the model's own can be told from both.
CLASSES = ["ship", "airplane", "truck", "automobile", "horse", "deer", "dog", "cat", "bird", "frog"]
SHARES = {"champion": [0.913, 0.0495, 0.02, 0.01, 0.005, 0.001, 0.0005, 0.0005, 0.0003, 0.0002]}
SHARES["challenger"] = [0.25, 0.65, *SHARES["champion"][2:8], 0.05, 0.0130]
VERSIONS = {"champion": "7", "challenger": "6"}
NOT_AN_IMAGE = "This is not an image that can be read; send one of JPEG, PNG."
UNAUTHORIZED = "This service wants a key: send the header 'Authorization: Bearer KEY'."


def draw(side: int = 64, colour: str = "teal") -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def model(role: str) -> dict[str, Any]:
    """What GET /model says of one model."""
    return {
        "name": "cifar10-mobilenet",
        "version": VERSIONS[role],
        "run_id": "a" * 32,
        "recipe": "cifar10_10m",
        "candidate": "pretrained" if role == "champion" else "scratch",
        "data_digest": "d" * 64,
        "git_commit": "c" * 40,
        "sha256": "b" * 64,
        "class_names": CLASSES,
        "test": {"accuracy": 0.9459, "loss": 0.237, "rows": 10_000},
        "accuracy": 0.9459,
        "coverage": 0.95,
        "verdict": {"promote": role == "champion", "reason": f"The reason of the {role}."},
    }


def prediction(role: str) -> dict[str, Any]:
    """What one model says of any photo."""
    shares = dict(zip(CLASSES, SHARES[role], strict=True))
    best = max(shares, key=lambda name: shares[name])
    return {
        "class": best,
        "confidence": shares[best],
        "probabilities": dict(sorted(shares.items())),
        "model_name": "cifar10-mobilenet",
        "model_version": VERSIONS[role],
        "coverage": 0.95,
        "prediction_set": [best] if role == "champion" else [best, "ship"],
        "unfamiliar": False,
    }


@dataclass
class Stub:
    """A service that answers what it is told to."""

    address: str
    html: str = PAGE.read_text(encoding="utf-8")
    classes: tuple[str, ...] = tuple(CLASSES)
    not_an_image: str = NOT_AN_IMAGE
    unauthorized: str = UNAUTHORIZED
    models: dict[str, Any] = field(default_factory=lambda: {role: model(role) for role in VERSIONS})
    answers: dict[str, Any] = field(default_factory=lambda: {role: prediction(role) for role in VERSIONS})
    token: str | None = None
    """With one, every request but that for the page needs it."""
    broken: bool = False
    """Every connection is cut without an answer."""
    delays: list[float] = field(default_factory=list)
    """Seconds that the next answers of /compare take, in order."""
    posted: list[tuple[str, bytes]] = field(default_factory=list)
    """Path and body of what came, in order."""

    def answer(self, path: str, body: bytes, authorization: str | None) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if path == "/":
            return 200, "text/html; charset=utf-8", self.html.encode()
        if self.token and authorization != f"Bearer {self.token}":
            return error(401, "unauthorized", UNAUTHORIZED)
        if path == "/model":
            return 200, "application/json", json.dumps(self.models).encode()
        # Before it is known to have come, and before it waits: what was so when the photo came.
        document = json.dumps(self.answers).encode()
        self.posted.append((path, body))
        if b"\x89PNG" not in body:
            return error(400, "not_an_image", NOT_AN_IMAGE)
        if path == "/input":
            return 200, "image/png", draw(32)
        time.sleep(self.delays.pop(0) if self.delays else 0)
        return 200, "application/json", document


def error(status: int, code: str, message: str) -> tuple[int, str, bytes]:
    """An error in the service's shape."""
    document = {"error": {"code": code, "message": message, "field": "image"}}
    return status, "application/json", json.dumps(document).encode()


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The stub, listening."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if found.broken:
                self.close_connection = True
                return
            status, kind, content = found.answer(self.path, body, self.headers.get("Authorization"))
            try:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:  # the page has given this photo up
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing: a test's output is for what fails."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Stub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


# Not for the whole session: as long as Playwright runs, its event loop is in this thread, and tests elsewhere could
# not start one of their own.
@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium, the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(reason=f"no Chromium is installed (looked for {', '.join(CHROMIUM)})")
    with api.sync_playwright() as playwright:
        # Without its sandbox, which does not start for root; it sees this page only.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "Browser", stub: Stub) -> "Iterator[Page]":
    """A tab that shows the demo page; a script that fails fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    failures: list[Any] = []
    tab.on("pageerror", lambda failure: failures.append(failure))
    tab.goto(stub.address)
    yield tab
    context.close()
    assert not failures


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Makes a PNG file of the given side and colour."""
    return draw


@pytest.fixture
def choose(page: "Page") -> Callable[..., None]:
    """Gives the page a photo, or the bytes of another file, by its file picker."""

    def give(data: bytes | None = None, name: str = "photo.png") -> None:
        page.locator("#file").set_input_files({"name": name, "mimeType": "", "buffer": data or draw()})

    return give
