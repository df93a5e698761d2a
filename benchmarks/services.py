"""The services that are measured, each in processes of its own that end with this one."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from load import HOST
from tqdm import tqdm

from mobilenet_pipeline.release import bento
from mobilenet_pipeline.system import process as pipeline
from serving import check, start

BASELINES = {"noop": "Noop", "keras": "KerasPredict", "savedmodel": "SavedModel"}
BATCHING = {"single": "Single", "batched": "Batched"}
"""One request at a time, and BentoML's adaptive batching, around the same artefact."""
START_SECONDS, EXPORT_SECONDS = 120, 300
LOG_LINES = 25


class BenchError(Exception):
    """There is nothing to measure, or a service does not start; a sentence for people."""


@contextmanager
def ours(tag: str) -> Iterator[tuple[int, float, psutil.Process]]:
    """Serve the live Bento until the block ends, as `serve` does, but with a record of answers that is thrown away.

    Gives its port, the seconds that it took to be ready, and its first process.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as record:
        command = bento.serve_command(tag, HOST, port, record=Path(record))
        with running("ours", command, port, dict(os.environ)) as (seconds, process):
            yield port, seconds, process


@contextmanager
def baseline(name: str, model: Path, class_names: list[str], scratch: Path) -> Iterator[int]:
    """Serve a baseline until the block ends, with a BentoML home of its own; its port.

    `model` is the Keras model, or for those of BATCHING the artefact.
    """
    code, port = Path(__file__).with_name("baselines.py"), free_port()
    if name == "savedmodel":
        keras, model = model, scratch / "saved"
        say("exporting the SavedModel")
        export = [sys.executable, str(code), str(keras), str(model)]
        done = subprocess.run(export, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
        if done.returncode:
            raise BenchError(f"{keras} cannot be exported: {done.stderr[-2000:]}")
    target = f"{code.stem}:{(BASELINES | BATCHING)[name]}"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--working-dir", str(code.parent)]
    home = scratch / name
    home.mkdir()
    known = {"BENTOML_HOME": str(home), "BENCH_MODEL": str(model.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    variables = {**os.environ, **known, "BENCH_CLASSES": json.dumps(class_names)}
    with running(name, [*command, "--host", HOST, "--port", str(port)], port, variables):
        yield port


@contextmanager
def running(
    name: str, command: list[str], port: int, variables: dict[str, str]
) -> Iterator[tuple[float, psutil.Process]]:
    """Run a service until the block ends; the seconds from its start to the first 200 of /readyz, its first process.

    Raises BenchError with the end of its log where it does not get there.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # On a leash: it ends with this process, however that ends.
        child = stack.enter_context(pipeline.leashed(command, variables, stdin=subprocess.DEVNULL, stdout=log))
        try:
            seconds = wait_until_ready(child, port)
        except BenchError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise BenchError("\n".join([f"{name} {error}; the end of its log:", *tail])) from None
        say(f"{name} is ready after {seconds:.1f} s")
        yield seconds, psutil.Process(child.pid)


def wait_until_ready(child: pipeline.Leashed, port: int) -> float:
    """Seconds from the service's first process to the first 200 of /readyz. Raises BenchError."""
    holder, workers = psutil.Process(child.pid), set()
    while not child.ended and not holder.children():  # what holds the leash is no part of the service
        time.sleep(0.005)
    started = looked = time.perf_counter()
    while (now := time.perf_counter()) < started + START_SECONDS:
        if child.ended:
            raise BenchError("ended before it was ready")
        if start.is_ready(HOST, port):
            return time.perf_counter() - started
        time.sleep(0.02)
        if now > looked + 1:  # seldom: looking takes time from the service
            looked = now
            workers |= {each for each in holder.children(recursive=True) if check.is_worker(each)}
            if not all(check.is_worker(each) for each in workers):
                raise BenchError("has a worker that ended before it was ready")
    raise BenchError(f"was not ready after {START_SECONDS} s")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def say(line: str) -> None:
    """A line of progress."""
    tqdm.write(line, file=sys.stderr)
