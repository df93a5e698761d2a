"""A job on the cluster, seen from its stage: start the driver, and hear what it says."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.system.process import Leashed, leashed
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.workspace.files import write_json
from mobilenet_pipeline.workspace.paths import data_folder

Message = dict[str, Any]


class ClusterError(ConnectionError):
    """The cluster is gone, or has too little room; another try may succeed."""


def messages(
    address: str,
    recipe: Recipe,
    name: str,
    dataset: Dataset,
    more: Mapping[str, Any],
    say: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """Run a job for a candidate or artefact, and yield what it brings; `say` is told the rest.

    `more` are settings of this kind of job. A wish to stop is passed on. Raises ClusterError if the job ends without a
    result, ValueError for what another try cannot mend.
    """
    job = {
        "address": address,
        "name": f"{recipe.name}-{name}-{uuid4().hex[:8]}",
        "recipe": recipe.model_dump(mode="json"),
        "candidate": name,
        "data": str(data_folder(recipe).resolve()),
        "digest": dataset.digest,
        "limit": distribution.limit(),
        "restarts": 0,
        **more,
    }
    again: Message | None = {}
    has_result = False
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.json"
        while again is not None:
            write_json(path, job | again)
            again = None
            for message in _heard(path, should_stop):
                if "error" in message:
                    raise (ValueError if message["lasting"] else ClusterError)(message["error"])
                if "again" in message:  # with fewer workers
                    again = message["again"]
                elif sentence := _log_line(message):
                    say(sentence)
                else:
                    has_result = has_result or "epoch" not in message
                    yield message
    if not has_result:
        raise ClusterError(f"the Ray cluster at {address} is gone")


def _log_line(message: Message) -> str | None:
    """Return a message for the log; None if it is a result."""
    if "placed" in message:
        return "asking Ray for {workers} × {devices} {resource}".format(**message["placed"])
    if "started" in message:
        return f"worker {message['started'] + 1} of {message['workers']} runs on {message['node']}"
    if "devices" in message:
        return f"training on {message['devices']}"
    return str(message["say"]) if "say" in message else None


def _heard(job: Path, should_stop: Callable[[], bool]) -> Iterator[Message]:
    """Run the driver, and yield its messages."""
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline.cluster.driver", str(job)]
    driver = leashed(command, dict(os.environ), setting.SAVE_SECONDS, stdout=subprocess.PIPE)
    with driver as child, _told(child, should_stop):
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(b"{"):
                yield json.loads(line)


@contextmanager
def _told(child: Leashed, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Send SIGTERM to the driver once a stop is wished, during the `with` body."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if should_stop():
                os.kill(child.pid, signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
