"""Dataset to trained model, its learning curve recorded as it goes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mobilenet_pipeline import anatomy, checkpoint, distribution, figures, images, provenance, split, tracking, training
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, model_folder, whole, write_json

BAR = 20


def main(recipe: Recipe, name: str) -> None:
    """Write `model.keras`, `history.csv` and `training.json`; of several workers only the first does.

    A training that was cut short goes on where it was, from `checkpoint.npz` beside these files.
    """
    keras.config.disable_interactive_logging()  # its bars would fill the log
    recipe = recipe.with_precision(bfloat16=distribution.bfloat16_helps())
    candidate, folder = recipe.candidate(name), model_folder(recipe, name)
    saved = folder / "checkpoint.npz"
    data = images.open_dataset(data_folder(recipe))
    pixels, labels = np.asarray(data.images), np.asarray(data.labels)
    limits = recipe.split
    kept, held_out = split.training_rows(labels, data.is_test, limits.validation_share, limits.seed)
    if (count := distribution.workers()) > 1:
        say(f"waiting for all {count} workers of TF_CONFIG")
    strategy = distribution.choose()
    devices = distribution.describe(strategy)
    say(f"{len(kept):,} images to train on, {len(held_out):,} to validate, on {devices}, in {candidate.precision}")

    def fit(on_epoch: Callable[[training.Epoch, int, float], None]) -> training.Trained:
        with asked_to_end() as asked:
            try:
                return training.train(
                    candidate,
                    training.Images(pixels[kept], labels[kept]),
                    training.Images(pixels[held_out], labels[held_out]),
                    len(data.class_names),
                    strategy,
                    on_epoch,
                    say,
                    saved,
                    asked,
                )
            except training.Interrupted as end:
                say(f"asked to end: the next run {f'goes on from {saved}' if end.saved else 'starts afresh'}")
                raise

    if not distribution.is_chief(strategy):
        fit(lambda row, epochs, left: say(progress(row, epochs, left)))
        return
    began = datetime.now(UTC)
    document = json.loads((data_folder(recipe) / "dataset.json").read_text(encoding="utf-8"))
    with tracking.candidate_run(recipe, name, os.environ.get("MOBILENET_PIPELINE_PARENT_RUN"), document) as run:

        def on_epoch(row: training.Epoch, epochs: int, left: float) -> None:
            run.log_epoch(row.epoch, {key: value for key, value in vars(row).items() if key != "epoch"})
            say(progress(row, epochs, left))

        trained = fit(on_epoch)
        save(folder, trained)
        run.log_model(trained.model, pixels[held_out[:2]])
        run.log_figure(figures.learning_curves({name: pd.read_csv(folder / "history.csv")}), "learning_curves.png")
    layers = anatomy.layers(candidate, len(data.class_names))
    facts = {
        "run_id": run.run_id,
        "cpu_minutes": trained.cpu_seconds / 60,
        "wall_minutes": sum(row.seconds for row in trained.history) / 60,
        "parameters": anatomy.parameters(layers),
        "multiply_adds": anatomy.multiply_adds(layers),
        "weights": trained.origin,
        "replicas": strategy.num_replicas_in_sync,
        "global_batch": candidate.batch_size * strategy.num_replicas_in_sync,
        "precision": candidate.precision,
        "epochs": round(trained.epochs, 3),
        "temperature": round(trained.temperature, 4),
        "preprocessing": provenance.preprocessing(),
        "data_digest": data.digest,
        "git_commit": provenance.git_commit(Path("."))[0],
        "tensorflow": tf.__version__,
        "machine": provenance.describe_machine(),
        "trained_at": began.isoformat(timespec="seconds"),
    }
    write_json(folder / "training.json", facts)
    for state in (saved, checkpoint.other(saved)):
        state.unlink(missing_ok=True)


def save(folder: Path, trained: training.Trained) -> None:
    """Write the model and its learning curve."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save(folder / "model.keras")
    with whole(folder / "history.csv") as partial:
        pd.DataFrame(training.to_rows(trained.history)).to_csv(partial, index=False)


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """Take SIGTERM or Ctrl-C as a request, so that the training ends when its state is saved; gives whether one came.

    A second one ends it at once.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def progress(row: training.Epoch, epochs: int, left: float) -> str:
    """A line with a bar for people, and `epoch 3/12` for whoever follows the log; `left` are seconds."""
    filled = BAR * row.epoch // epochs
    return (
        f"{'█' * filled}{'░' * (BAR - filled)} epoch {row.epoch}/{epochs} "
        f"loss {row.train_loss:.3f} accuracy {row.train_accuracy:.3f} "
        f"validation {row.validation_loss:.3f} {row.validation_accuracy:.3f} "
        f"{row.seconds:.1f} s, {int(left) // 60}:{int(left) % 60:02d} left"
    )


def say(line: str) -> None:
    """A line for whoever follows the log."""
    print(line, flush=True)
