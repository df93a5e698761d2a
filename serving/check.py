"""Serve a Bento for a moment and compare its answers over HTTP with those of its artefact in this process.

A program that reads {"command", "port", "champion", "milliseconds"} (JSON) from standard input: the command line that
serves, its port, the folder of the champion, and the latency budget. A failed check ends it with exit status 1, a
sentence and the end of the server's log.
"""

import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import Artefact
from serving.settings import PROGRAM

START_SECONDS = 120
STOP_SECONDS = 15
ANSWER_SECONDS = 30
LOG_LINES = 20
TIMED = 50


class CheckError(Exception):
    """The Bento does not start, or its answers differ from its artefact's."""


def check(client: httpx.Client, champion: Path, milliseconds: float) -> None:
    """Compare the client's service with the artefact in the folder, and its median latency with the budget.

    Raises CheckError with a sentence.
    """
    metadata = json.loads((champion / "metadata.json").read_text(encoding="utf-8"))
    version = ask(client, "/model")["champion"]["version"]
    if version != metadata["version"]:
        raise CheckError(f"it serves version {version}, not version {metadata['version']}")
    artefact = Artefact(champion / "model.tflite")
    size = artefact.image_shape[0]
    for file in golden_images(size):
        expected = artefact.predict(preprocess.decode(file, size, metadata.get("resize", "crop"))[None])[0]
        probabilities = list(ask(client, "/predict", file)["probabilities"].values())
        if not np.allclose(probabilities, expected, rtol=0, atol=1e-5):
            raise CheckError(
                f"its probabilities over HTTP are {probabilities}, those of its artefact {expected.tolist()}"
            )
    median = latency(client, next(golden_images(size)))
    if median > milliseconds:
        raise CheckError(f"its median latency is {median:.1f} ms, and the recipe allows {milliseconds:g} ms")


def golden_images(size: int) -> Iterator[bytes]:
    """Yield synthetic image files: two of the model's size, then others of several sizes, modes and formats."""
    rng = np.random.default_rng(0)
    for width, height, mode, kind in (
        (size, size, "RGB", "PNG"),
        (size, size, "RGB", "BMP"),
        (300, 200, "RGB", "JPEG"),
        (90, 160, "L", "PNG"),
        (64, 64, "RGBA", "PNG"),
    ):
        coarse = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, kind)
        yield file.getvalue()


def latency(client: httpx.Client, image: bytes) -> float:
    """Return the median milliseconds of an answer; a median ignores stalls of the machine."""
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        ask(client, "/predict", image)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds) * 1000)


def ask(client: httpx.Client, path: str, image: bytes | None = None) -> Any:
    """GET the path, or POST the image to it, and return the JSON of the answer. Raises CheckError for a refusal."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = client.post(path, content=image, headers=headers) if image else client.get(path)
    if not answer.is_success:
        raise CheckError(f"{path} answers with status {answer.status_code}: {answer.text}")
    return answer.json()


@contextmanager
def serving(command: list[str], address: str) -> Iterator[httpx.Client]:
    """Run the server until the block ends, and give a client of it. A CheckError gets the end of the server's log."""
    with (
        tempfile.TemporaryFile() as log,
        httpx.Client(base_url=address, trust_env=False, timeout=ANSWER_SECONDS) as client,
    ):
        server = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until_ready(server, client)
            yield client
        except (CheckError, OSError, httpx.HTTPError, KeyError, ValueError) as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise CheckError("\n".join([f"{error}; the end of the server's log:", *tail])) from None
        finally:
            stop(server)


def wait_until_ready(server: psutil.Popen, client: httpx.Client) -> None:
    """Return when /readyz answers. Raises CheckError if the server fails before, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    workers: set[psutil.Process] = set()
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise CheckError(f"its server ended with status {server.returncode} before it was ready")
        # BentoML's supervisor keeps the port open and restarts a failing worker without end.
        workers |= {child for child in server.children() if is_worker(child)}
        if not all(is_worker(process) for process in workers):
            raise CheckError("its worker ended before it was ready")
        try:
            if client.get("/readyz", timeout=1).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise CheckError(f"its server was not ready after {START_SECONDS} s")


def is_worker(process: psutil.Process) -> bool:
    """Return whether this is a running BentoML worker."""
    try:
        return PROGRAM in process.cmdline()
    except psutil.Error:  # the process has ended
        return False


def stop(server: psutil.Popen) -> None:
    """Stop the server and its workers; kill those that take longer than STOP_SECONDS."""
    if server.poll() is not None:
        return
    processes = [server, *server.children(recursive=True)]
    server.terminate()
    for process in psutil.wait_procs(processes, timeout=STOP_SECONDS)[1]:
        process.kill()


def main() -> int:
    """Run the check that standard input describes, and return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exit stops the server too
    order = json.load(sys.stdin)
    address = f"http://127.0.0.1:{order['port']}"
    try:
        with serving(order["command"], address) as client:
            check(client, Path(order["champion"]), order["milliseconds"])
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
