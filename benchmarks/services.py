"""Start the measured services. Their processes end with this process."""

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
"""The artefact without batching, and with BentoML's adaptive batching."""
START_SECONDS, EXPORT_SECONDS = 120, 300
LOG_LINES = 25


class BenchError(Exception):
    """There is nothing to measure, or a service does not start. The message is for people."""


@contextmanager
def ours(tag: str) -> Iterator[tuple[int, float, psutil.Process]]:
    """Serve the live Bento during the `with` body, as `serve` does.

    The record of answers is temporary. Yields the port, the seconds until ready, and the first process.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as record:
        command = bento.serve_command(tag, HOST, port, record=Path(record))
        with running("ours", command, port, dict(os.environ)) as (seconds, process):
            yield port, seconds, process


@contextmanager
def baseline(name: str, model: Path, class_names: list[str], scratch: Path) -> Iterator[int]:
    """Serve a baseline during the `with` body, and yield its port.

    It has its own BentoML home. `model` is the Keras model; for the services of BATCHING, it is the artefact. Raises
    BenchError if the service does not start.
    """
    code, port = Path(__file__).with_name("baselines.py"), free_port()
    if name == "savedmodel":
        keras, model = model, scratch / "saved"
        say("exporting the SavedModel")
        export = [sys.executable, str(code), str(keras), str(model)]
        process = subprocess.run(export, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
        if process.returncode:
            raise BenchError(f"{keras} cannot be exported: {process.stderr[-2000:]}")
    target = f"{code.stem}:{(BASELINES | BATCHING)[name]}"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--working-dir", str(code.parent)]
    home = scratch / name
    home.mkdir()
    settings = {"BENTOML_HOME": str(home), "BENCH_MODEL": str(model.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    variables = {**os.environ, **settings, "BENCH_CLASSES": json.dumps(class_names)}
    with running(name, [*command, "--host", HOST, "--port", str(port)], port, variables):
        yield port


@contextmanager
def running(
    name: str, command: list[str], port: int, variables: dict[str, str]
) -> Iterator[tuple[float, psutil.Process]]:
    """Run a service during the `with` body.

    Yields the seconds from its start to the first 200 of /readyz, and its first process. Raises BenchError with the end
    of its log if it does not become ready.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # The service ends with this process, even if this process is killed.
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
    """Return the seconds from the service's start to the first 200 of /readyz.

    Raises BenchError if the service or a worker ends, or takes too long.
    """
    holder, workers = psutil.Process(child.pid), set()
    while not child.ended and not holder.children():  # the child is a wrapper: its first child is the service
        time.sleep(0.005)
    started = checked = time.perf_counter()
    while (now := time.perf_counter()) < started + START_SECONDS:
        if child.ended:
            raise BenchError("ended before it was ready")
        if start.is_ready(HOST, port):
            return time.perf_counter() - started
        time.sleep(0.02)
        if now > checked + 1:  # rarely, because the check takes CPU time from the service
            checked = now
            workers |= {process for process in holder.children(recursive=True) if check.is_worker(process)}
            if not all(check.is_worker(process) for process in workers):
                raise BenchError("has a worker that ended before it was ready")
    raise BenchError(f"was not ready after {START_SECONDS} s")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def say(line: str) -> None:
    """Print a line of progress."""
    tqdm.write(line, file=sys.stderr)
