"""What a worker of the cluster does. Ray calls `train` in each of them, and `evaluate` in one."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mobilenet_pipeline.cluster import files
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.system.machine import describe_machine

ASK_SECONDS = 1.0
"""Seconds between two questions to the relay."""


class Line:
    """A worker's line to the relay."""

    def __init__(self, relay: Any) -> None:
        self._relay, self._asked, self._stop = relay, 0.0, False

    def call(self, method: str, *words: Any) -> Any:
        """Call a method of the relay, and wait for its answer."""
        return ray.get(getattr(self._relay, method).remote(*words))

    def tell(self, **message: Any) -> None:
        """Tell the driver something."""
        self.call("tell", message)

    def should_stop(self) -> bool:
        """Return whether the driver wants the workers to stop."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._stop, self._asked = self.call("should_stop"), time.monotonic()
        return self._stop

    def files(self) -> Iterable[tuple[str, Iterable[bytes]]]:
        """Return names and contents of the dataset's files, from the object store."""
        self.tell(
            say=f"{os.uname().nodename} does not share the workspace: the dataset comes through Ray's object store"
        )
        return files.parts(self._part)

    def _part(self, name: str, index: int) -> bytes:
        while (found := self.call("ask_for_part", name, index)) is None:
            time.sleep(ASK_SECONDS / 10)
        return bytes(ray.get(found[0]))


def train(job: dict[str, Any]) -> None:
    """Train the job's candidate with the other workers; the first tells the driver what it has trained."""
    _work(_train, job)


def evaluate(job: dict[str, Any]) -> None:
    """Score the job's artefact, and tell the driver the result."""
    _work(_evaluate, job)


def _work(work: Callable[[dict[str, Any], Line], None], job: dict[str, Any]) -> None:
    """Do the work. What a retry cannot mend is told to the driver, which ends the job."""
    environment.prepare()  # Ray has set variables, too
    line = Line(job["relay"])
    try:
        work(job, line)
    except (ValueError, files.MachineError) as error:  # after all others, Ray starts the workers again
        line.tell(error=str(error), lasting=isinstance(error, ValueError))
        raise


def _evaluate(job: dict[str, Any], line: Line) -> None:
    from mobilenet_pipeline.evaluation.evaluate import evaluate

    recipe = Recipe.model_validate(job["recipe"])
    line.tell(started=0, workers=1, node=os.uname().nodename)
    dataset = files.at_hand(Path(job["data"]), job["digest"], line.files)
    _, validation = split_rows(dataset, recipe.split)
    with tempfile.TemporaryDirectory() as folder:
        artefact, predictions = Path(folder) / "model.tflite", Path(folder) / "predictions.npz"
        artefact.write_bytes(ray.get(job["artefact"]))
        document, arrays = evaluate(artefact, dataset, validation, recipe.gate.coverage)
        np.savez(predictions, allow_pickle=False, **arrays)
        line.tell(document=document, predictions=predictions.read_bytes())


def _train(job: dict[str, Any], line: Line) -> None:
    # TensorFlow reads the environment when it is imported.
    from mobilenet_pipeline.training import distribution
    from mobilenet_pipeline.training.batches import Images
    from mobilenet_pipeline.training.train import Callbacks, Interrupted, TrainingData
    from mobilenet_pipeline.training.train import train as train_here

    recipe = Recipe.model_validate(job["recipe"])
    candidate, rank = recipe.candidate(job["candidate"]), ray.train.get_context().get_world_rank()
    line.tell(started=rank, workers=distribution.workers(), node=os.uname().nodename)
    if not job["gpu"]:
        distribution.use_cores(candidate.devices_per_worker)
    dataset: Dataset = files.at_hand(Path(job["data"]), job["digest"], line.files)
    training, validation = (
        Images(dataset.images, np.asarray(dataset.labels[rows]), rows) for rows in split_rows(dataset, recipe.split)
    )
    data = TrainingData(training, validation, len(dataset.class_names))
    with tempfile.TemporaryDirectory() as folder:
        if job["weights"]:
            name, content = job["weights"]
            (Path(folder) / name).write_bytes(ray.get(content))
            os.environ["IMAGENET_WEIGHTS_DIR"] = folder
        checkpoint = Path(folder) / "checkpoint.npz"
        if state := line.call("state"):
            checkpoint.write_bytes(state)
        strategy = distribution.choose()
        is_chief = distribution.is_chief(strategy)
        if is_chief:
            line.tell(devices=distribution.describe(strategy))
        callbacks = Callbacks(should_stop=line.should_stop)
        if is_chief:
            callbacks = Callbacks(
                on_epoch=lambda row, epochs, left: line.tell(epoch=asdict(row), epochs=epochs, left=left),
                say=lambda sentence: line.tell(say=sentence),
                should_stop=line.should_stop,
                on_save=lambda: line.call("save", checkpoint.read_bytes()),
            )
        try:
            trained = train_here(candidate, data, strategy, callbacks, checkpoint)
        except Interrupted as stop:
            if is_chief:
                line.tell(interrupted=True, saved=stop.saved)
            return
        if not is_chief:
            return
        path = Path(folder) / "model.keras"
        trained.model.save(path)
        facts = {
            key: getattr(trained, key)
            for key in ("origin", "epochs", "cpu_seconds", "temperature", "replicas", "global_batch")
        }
        history = [asdict(row) for row in trained.history]
        line.tell(trained={**facts, "history": history, "machine": describe_machine()}, model=path.read_bytes())
