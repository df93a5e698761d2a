"""Dataset to trained model, its learning curve recorded as it goes."""

import json
import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mobilenet_pipeline import anatomy, distribution, figures, images, provenance, split, tracking, training
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, model_folder, whole, write_json
from mobilenet_pipeline.stages import run_stage

BAR = 20


def main(recipe: Recipe, name: str) -> None:
    """Write `model.keras`, `history.csv` and `training.json`."""
    keras.config.disable_interactive_logging()  # its bars would fill the log
    candidate = recipe.candidate(name)
    data = images.open_dataset(data_folder(recipe))
    document = json.loads((data_folder(recipe) / "dataset.json").read_text(encoding="utf-8"))
    pixels, labels = np.asarray(data.images), np.asarray(data.labels)
    limits = recipe.split
    kept, held_out = split.training_rows(labels, data.is_test, limits.validation_share, limits.seed)
    strategy = distribution.choose(int(os.environ.get("MOBILENET_PIPELINE_CPU_REPLICAS", "1")))
    parent = os.environ.get("MOBILENET_PIPELINE_PARENT_RUN")
    began, started, cpu_started = datetime.now(UTC), time.perf_counter(), cpu_seconds()
    with tracking.candidate_run(recipe, name, parent, document) as run:

        def on_epoch(row: training.Epoch) -> None:
            run.log_epoch(row.epoch, {key: value for key, value in vars(row).items() if key != "epoch"})
            print(progress(row, candidate.epochs, time.perf_counter() - started), flush=True)

        print(
            f"{len(kept):,} images to train on, {len(held_out):,} to validate, {candidate.epochs} epochs on "
            f"{distribution.describe(strategy)}",
            flush=True,
        )
        trained = training.train(
            candidate,
            training.Images(pixels[kept], labels[kept]),
            training.Images(pixels[held_out], labels[held_out]),
            len(data.class_names),
            strategy,
            on_epoch,
        )
        facts = {
            "run_id": run.run_id,
            "cpu_minutes": (cpu_seconds() - cpu_started) / 60,
            "wall_minutes": (time.perf_counter() - started) / 60,
        }
        folder = model_folder(recipe, name)
        save(folder, trained)
        run.log_model(trained.model, pixels[held_out[:2]])
        run.log_figure(figures.learning_curves({name: pd.read_csv(folder / "history.csv")}), "learning_curves.png")
    layers = anatomy.layers(candidate, len(data.class_names))
    facts |= {
        "parameters": anatomy.parameters(layers),
        "multiply_adds": anatomy.multiply_adds(layers),
        "weights": trained.origin,
        "replicas": strategy.num_replicas_in_sync,
        "global_batch": candidate.batch_size * strategy.num_replicas_in_sync,
        "epochs": candidate.epochs,
        "data_digest": data.digest,
        "git_commit": provenance.git_commit(Path("."))[0],
        "tensorflow": tf.__version__,
        "machine": provenance.describe_machine(),
        "trained_at": began.isoformat(timespec="seconds"),
    }
    write_json(folder / "training.json", facts)


def save(folder: Path, trained: training.Trained) -> None:
    """Write the model and its learning curve."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save(folder / "model.keras")
    with whole(folder / "history.csv") as partial:
        pd.DataFrame(training.to_rows(trained.history)).to_csv(partial, index=False)


def progress(row: training.Epoch, epochs: int, elapsed: float) -> str:
    """A line with a bar for people, and `epoch 3/12` for whoever follows the log."""
    left = elapsed / row.epoch * (epochs - row.epoch)
    filled = BAR * row.epoch // epochs
    return (
        f"{'█' * filled}{'░' * (BAR - filled)} epoch {row.epoch}/{epochs} "
        f"loss {row.train_loss:.3f} accuracy {row.train_accuracy:.3f} "
        f"validation {row.validation_loss:.3f} {row.validation_accuracy:.3f} "
        f"{row.seconds:.1f} s, {int(left) // 60}:{int(left) % 60:02d} left"
    )


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run_stage(main, takes_candidate=True)
