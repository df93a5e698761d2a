"""A training on the cluster, seen from its stage: the same calls as a training in the stage's own process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.models.network import architecture_of
from mobilenet_pipeline.system.process import Leashed, leashed
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.training.loop import Epoch
from mobilenet_pipeline.training.train import Callbacks, Interrupted, Trained
from mobilenet_pipeline.workspace.files import write_json
from mobilenet_pipeline.workspace.paths import data_folder

SAVE_SECONDS = 60.0
"""Seconds that the workers have for saving their state after a stop request."""
_LAST_LINES = 5


def train(
    address: str, recipe: Recipe, name: str, dataset: Dataset, callbacks: Callbacks, checkpoint: Path
) -> tuple[Trained, dict[str, Any]]:
    """Train a candidate on the cluster at `address`; return what was trained, and the first worker's machine.

    The state is saved to `checkpoint` after every epoch, and the training continues from it, as one that runs here.
    Raises ConnectionError if the cluster is gone or has too little room, ValueError for what another try cannot mend,
    Interrupted soon after a stop is requested.
    """
    keras.config.disable_interactive_logging()  # its progress bars would fill the log
    candidate = recipe.candidate(name)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.keras"
        job = {
            "address": address,
            "name": f"{recipe.name}-{name}-{os.getpid()}-{int(time.time())}",
            "recipe": recipe.model_dump(mode="json"),
            "candidate": name,
            "workers": candidate.workers,
            "devices": candidate.devices_per_worker,
            "fewer": _fewer(candidate.workers, candidate.batch_size) if candidate.fewer_workers else [],
            "data": str(data_folder(recipe).resolve()),
            "digest": dataset.digest,
            "weights": str(architecture_of(candidate).file(candidate)) if candidate.weights == "imagenet" else None,
            "checkpoint": str(checkpoint.resolve()),
            "model": str(model),
            "storage": str(Path(tempfile.gettempdir()) / "mobilenet-pipeline-ray"),
            "limit": distribution.limit(),
        }
        write_json(Path(scratch) / "job.json", job)
        told = 0
        for message in _messages(Path(scratch) / "job.json", callbacks.should_stop):
            if "epoch" in message:
                row = Epoch(**message["epoch"])
                if row.epoch > told:  # workers that were started again tell all epochs
                    told = row.epoch
                    callbacks.on_epoch(row, message["epochs"], message["left"])
            elif "interrupted" in message:
                raise Interrupted(message["saved"])
            elif "error" in message:
                raise (ValueError if message["lasting"] else ConnectionError)(_sentence(message["error"], checkpoint))
            elif "trained" in message:
                facts = message["trained"]
                machine = facts.pop("machine")
                rows = [Epoch(**row) for row in facts.pop("history")]
                return Trained(keras.models.load_model(model), rows, **facts), machine
            elif sentence := _log_line(message):
                callbacks.say(sentence)
    raise ConnectionError(_sentence(f"the Ray cluster at {address} is gone", checkpoint))


def _fewer(workers: int, batch: int) -> list[int]:
    """Return the smaller numbers of workers that can share the global batch equally."""
    return [count for count in range(1, workers) if batch * workers % count == 0]


def _sentence(reason: str, checkpoint: Path) -> str:
    """Return the reason, and what the next run does."""
    kept = f"; the next run continues from {checkpoint}" if checkpoint.exists() else ""
    return f"{reason}{kept}"


def _log_line(message: dict[str, Any]) -> str | None:
    """Return a message of the workers for the log."""
    if "placed" in message:
        placed = message["placed"]
        return "asking Ray for {workers} × {devices} {resource}".format(**placed)
    if "started" in message:
        return f"worker {message['started'] + 1} of {message['workers']} runs on {message['node']}"
    return message.get("say") or ("training on " + message["devices"] if "devices" in message else None)


def _messages(job: Path, should_stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Run the driver, and yield its messages. A wish to stop is passed on to it."""
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline.cluster.driver", str(job)]
    with leashed(command, dict(os.environ), SAVE_SECONDS, stdout=subprocess.PIPE) as child, _told(child, should_stop):
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
