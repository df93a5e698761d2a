"""Train a candidate. MLflow gets the learning curve during the training."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.models import anatomy, costs
from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.reports import figures
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.training import checkpoint, distribution, tensorboard
from mobilenet_pipeline.training.batches import IN_MEMORY, Images
from mobilenet_pipeline.training.loop import Epoch
from mobilenet_pipeline.training.train import Callbacks, Interrupted, Trained, TrainingData, to_rows, train
from mobilenet_pipeline.workspace import provenance
from mobilenet_pipeline.workspace.files import read_json, whole, write_json
from mobilenet_pipeline.workspace.paths import data_folder, model_folder

BAR = 20


def main(recipe: Recipe, name: str) -> None:
    """Write `model.keras`, `history.csv` and `training.json`.

    Of several workers, only the first writes. A training that was cut short continues from `checkpoint.npz` beside
    these files.
    """
    address = setting.address()
    # Machines of a cluster may differ, and a training may continue on another one.
    recipe = recipe.with_precision(bfloat16=address is None and distribution.bfloat16_helps())
    candidate, folder = recipe.candidate(name), model_folder(recipe, name)
    checkpoint_path = folder / "checkpoint.npz"
    dataset = open_dataset(data_folder(recipe))
    training, validation = (
        Images(dataset.images, np.asarray(dataset.labels[rows]), rows) for rows in split_rows(dataset, recipe.split)
    )
    data = TrainingData(training, validation, len(dataset.class_names))
    if (count := distribution.workers()) > 1:
        say(f"waiting for all {count} workers of TF_CONFIG")
    if address:
        distribution.leave_gpus()  # this machine may be one of the cluster's
    strategy = None if address else distribution.choose()
    devices = distribution.describe(strategy) if strategy else f"the Ray cluster {address}"
    if training.bytes > IN_MEMORY:
        say(f"{training.bytes / 2**30:.1f} GiB of training images: they are read from images.npy batch by batch")
    say(f"{len(training):,} training and {len(validation):,} validation images, on {devices}, in {candidate.precision}")

    def fit(on_epoch: Callable[[Epoch, int, float], None]) -> tuple[Trained, dict[str, Any]]:
        with stop_on_signal() as should_stop:
            callbacks = Callbacks(on_epoch, say, should_stop)
            try:
                if strategy is None:
                    from mobilenet_pipeline.cluster import training as cluster

                    return cluster.train(str(address), recipe, name, dataset, callbacks, checkpoint_path)
                return train(candidate, data, strategy, callbacks, checkpoint_path), machine.describe_machine()
            except Interrupted as stop:
                next_run = f"continues from {checkpoint_path}" if stop.saved else "starts afresh"
                say(f"stop requested: the next run {next_run}")
                raise

    if strategy and not distribution.is_chief(strategy):
        fit(lambda row, epochs, left: say(progress(row, epochs, left)))
        return
    began = datetime.now(UTC)
    logs = os.environ.get("MOBILENET_PIPELINE_TENSORBOARD")
    log_folder = Path(logs) / recipe.name / name / f"{began:%Y%m%d-%H%M%S}" if logs else None
    document = read_json(data_folder(recipe) / "dataset.json")
    with (
        runs.candidate_run(recipe, name, os.environ.get("MOBILENET_PIPELINE_PARENT_RUN"), document) as run,
        tensorboard.open_log(log_folder) as log,
    ):

        def on_epoch(row: Epoch, epochs: int, left: float) -> None:
            run.log_epoch(row.epoch, {key: value for key, value in vars(row).items() if key != "epoch"})
            log.log_epoch(row)
            say(progress(row, epochs, left))

        trained, trained_on = fit(on_epoch)
        save(folder, trained)
        log.log_graph(trained.model)
        steps = round(trained.epochs * len(training) / trained.global_batch)
        run.log_model(trained.model, validation.first(2), dataset.class_names, steps)
        run.log_figure(figures.learning_curves({name: pd.read_csv(folder / "history.csv")}), "learning_curves.png")
    layers = costs.layers(candidate, data.classes)
    facts = {
        "run_id": run.run_id,
        "cpu_minutes": trained.cpu_seconds / 60,
        "wall_minutes": sum(row.seconds for row in trained.history) / 60,
        "parameters": anatomy.parameters(layers),
        "multiply_adds": anatomy.multiply_adds(layers),
        "weights": trained.origin,
        "replicas": trained.replicas,
        "planned_replicas": trained.global_batch // candidate.batch_size,
        "global_batch": trained.global_batch,
        "precision": candidate.precision,
        "epochs": round(trained.epochs, 3),
        "temperature": round(trained.temperature, 4),
        "preprocessing": preprocess.fingerprint(),
        "data_digest": dataset.digest,
        "git_commit": provenance.git_commit(Path("."))[0],
        "tensorflow": version("tensorflow"),
        "machine": trained_on,
        "trained_at": began.isoformat(timespec="seconds"),
    }
    write_json(folder / "training.json", facts)
    for state in (checkpoint_path, checkpoint.other(checkpoint_path)):
        state.unlink(missing_ok=True)


def save(folder: Path, trained: Trained) -> None:
    """Write the model and its learning curve."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save(folder / "model.keras")
    with whole(folder / "history.csv") as partial:
        pd.DataFrame(to_rows(trained.history)).to_csv(partial, index=False)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Treat SIGTERM and Ctrl-C as stop requests during the `with` body.

    Yields a function that returns whether a stop was requested. A second signal ends the process at once.
    """
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def progress(row: Epoch, epochs: int, left: float) -> str:
    """Return the log line of an epoch; `left` is in seconds.

    It has a bar for people and `epoch 3/12` for programs.
    """
    filled = BAR * row.epoch // epochs
    return (
        f"{'█' * filled}{'░' * (BAR - filled)} epoch {row.epoch}/{epochs} "
        f"loss {row.train_loss:.3f} accuracy {row.train_accuracy:.3f} "
        f"validation {row.validation_loss:.3f} {row.validation_accuracy:.3f} "
        f"{row.seconds:.1f} s, {int(left) // 60}:{int(left) % 60:02d} left"
    )


def say(line: str) -> None:
    """Print a line to the log at once."""
    print(line, flush=True)
