"""Serve a Bento for a moment and compare its answers over HTTP with those of its artefact in this process.

A program: it reads {"command", "port", "champion", "milliseconds"} (JSON) from its standard input: the command line
that serves, the port that it will listen on, the folder of the champion, and what an answer may take. It ends with a
sentence and the server's last lines, and exit status 1, where something is wrong.
"""

import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import Artefact
from serving.workers import PROGRAM

START_SECONDS = 120
STOP_SECONDS = 15
LOG_LINES = 20
TIMED = 50
# Proxies are for the world outside.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class CheckError(Exception):
    """The Bento does not start, or does not answer as its artefact does."""


def check(address: str, champion: Path, milliseconds: float) -> None:
    """Compare the service at the address with the artefact in the folder, and its latency with the budget.

    Raises CheckError with a sentence.
    """
    metadata = json.loads((champion / "metadata.json").read_text(encoding="utf-8"))
    version = ask(f"{address}/model")["champion"]["version"]
    if version != metadata["version"]:
        raise CheckError(f"it says that it serves version {version}, not {metadata['version']}")
    artefact = Artefact(champion / "model.tflite")
    for file in golden_images():
        expected = artefact.predict(preprocess.decode(file)[None])[0]
        found = list(ask(f"{address}/predict", file)["probabilities"].values())
        if not np.allclose(found, expected, rtol=0, atol=1e-5):
            raise CheckError(f"its probabilities over HTTP are {found}, those of its artefact {expected.tolist()}")
    taken = latency(address, next(golden_images()))
    if taken > milliseconds:
        raise CheckError(f"half of its answers take more than {taken:.1f} ms, the recipe allows {milliseconds:g}")


def golden_images() -> Iterator[bytes]:
    """Made-up image files, small and large, in several modes and formats."""
    rng = np.random.default_rng(0)
    side = preprocess.SIDE
    for width, height, mode, kind in (
        (side, side, "RGB", "PNG"),
        (side, side, "RGB", "BMP"),
        (300, 200, "RGB", "JPEG"),
        (90, 160, "L", "PNG"),
        (64, 64, "RGBA", "PNG"),
    ):
        coarse = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, kind)
        yield file.getvalue()


def latency(address: str, image: bytes) -> float:
    """Median milliseconds of an answer, a stall of the machine aside."""
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        ask(f"{address}/predict", image)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds) * 1000)


def ask(url: str, png: bytes | None = None, seconds: float = 30) -> Any:
    """GET the URL, or POST the image to it; the JSON of the answer. Raises OSError where there is none in time."""
    request = urllib.request.Request(url, png, {"Content-Type": "image/png"} if png else {})
    with OPENER.open(request, timeout=seconds) as answer:
        return json.loads(answer.read().strip() or "null")


@contextmanager
def serving(command: list[str], address: str) -> Iterator[None]:
    """Run the server until the block ends. A CheckError gets the end of its log."""
    with tempfile.TemporaryFile() as log:
        server = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until_ready(server, address)
            yield
        except (CheckError, OSError, KeyError, ValueError) as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise CheckError("\n".join([f"{error}; the end of the server's log:", *tail])) from None
        finally:
            stop(server)


def wait_until_ready(server: psutil.Popen, address: str) -> None:
    """Return when /readyz answers. Raises CheckError if the server fails before, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    workers: set[psutil.Process] = set()
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise CheckError(f"its server ended with status {server.returncode} before it was ready")
        # BentoML's supervisor keeps the port open and starts a worker that fails again and again, for ever.
        workers |= {child for child in server.children() if is_worker(child)}
        if not all(is_worker(process) for process in workers):
            raise CheckError("its worker ended before it was ready")
        try:
            ask(f"{address}/readyz", seconds=1)
            return
        except OSError:
            time.sleep(0.1)
    raise CheckError(f"its server was not ready after {START_SECONDS} s")


def is_worker(process: psutil.Process) -> bool:
    """Whether this is a BentoML worker that lives."""
    try:
        return PROGRAM in process.cmdline()
    except psutil.Error:  # it has ended
        return False


def stop(server: psutil.Popen) -> None:
    """End the server and its workers, gently first."""
    if server.poll() is not None:
        return
    processes = [server, *server.children(recursive=True)]
    server.terminate()
    for process in psutil.wait_procs(processes, timeout=STOP_SECONDS)[1]:
        process.kill()


def main() -> int:
    """Carry out the order on standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # who is told to end ends the server too
    order = json.load(sys.stdin)
    address = f"http://127.0.0.1:{order['port']}"
    try:
        with serving(order["command"], address):
            check(address, Path(order["champion"]), order["milliseconds"])
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
