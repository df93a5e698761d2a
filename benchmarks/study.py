"""Train variants of a candidate and record their validation results, which justify the recipes' settings.

A study in benchmarks/studies.yaml names a recipe's candidate. Each of its rows has the settings that differ. Each row
is trained in its own process and added to docs/results/studies.jsonl; a recorded row is not trained again. The test
images are not read.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from mobilenet_pipeline import config

STUDIES = Path("benchmarks/studies.yaml")
RESULTS = Path("docs/results/studies.jsonl")


def main() -> None:
    """Train the rows that are missing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exit normally, so that the training ends, too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help="names of studies (default: all)")
    parser.add_argument("--list", action="store_true", help="only list the rows, and which are done")
    chosen = parser.parse_args()
    studies = yaml.safe_load(STUDIES.read_text(encoding="utf-8"))
    unknown = set(chosen.studies) - set(studies)
    if unknown:
        sys.exit(f"{STUDIES} has no {', '.join(sorted(unknown))}; there are: {', '.join(studies)}")
    for name in chosen.studies or studies:
        study = studies[name]
        recipe = config.load_recipe(study["recipe"])
        for changes in study["rows"]:
            values = recipe.candidate(study["candidate"]).model_dump() | study.get("common", {}) | (changes or {})
            candidate = config.Candidate.model_validate(values)
            known = [row for row in rows() if (row["study"], row["changes"]) == (name, changes or {})]
            if known and (other := differing(known[0], candidate)):
                sys.exit(
                    f"{name}: {changes} was trained with other values of {', '.join(other)}; set the old values in "
                    f"{STUDIES}, or delete the study's rows from {RESULTS} to train the whole study again"
                )
            print(f"{name}: {changes}{' is done' if known else ''}", flush=True)
            if known or chosen.list:
                continue
            child = multiprocessing.get_context("spawn").Process(
                target=_train, args=(name, changes or {}, recipe, candidate), daemon=True
            )
            child.start()
            child.join()
            if child.exitcode:
                sys.exit(child.exitcode)


def differing(row: dict, candidate: config.Candidate) -> list[str]:
    """Return the settings in which a recorded row differs from the candidate.

    New settings are not compared, nor is the precision that `auto` resolved to.
    """
    now = candidate.model_dump()
    return [key for key, value in row["candidate"].items() if key != "precision" and now.get(key, value) != value]


def rows() -> list[dict]:
    """Return all recorded rows."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def _train(study: str, changes: dict, recipe: config.Recipe, candidate: config.Candidate) -> None:
    from mobilenet_pipeline.system import environment

    environment.prepare()
    import keras
    import tensorflow as tf

    from mobilenet_pipeline.data import dataset
    from mobilenet_pipeline.data.split import split_rows
    from mobilenet_pipeline.models import anatomy, costs
    from mobilenet_pipeline.system import machine
    from mobilenet_pipeline.training import distribution, train
    from mobilenet_pipeline.training.batches import Images
    from mobilenet_pipeline.workspace import provenance
    from mobilenet_pipeline.workspace.paths import data_folder

    keras.config.disable_interactive_logging()
    candidate = candidate.with_precision(bfloat16=distribution.bfloat16_helps())
    data = dataset.open_dataset(data_folder(recipe))
    training, validation = (Images(data.images, data.labels[rows], rows) for rows in split_rows(data, recipe.split))
    trained = train.train(
        candidate,
        train.TrainingData(training, validation, len(data.class_names)),
        tf.distribute.get_strategy(),
        train.Callbacks(
            on_epoch=lambda row, epochs, left: print(
                f"  {row.epoch}/{epochs} {row.train_accuracy:.4f} {row.validation_accuracy:.4f} {row.seconds:.0f} s",
                flush=True,
            ),
            say=lambda line: print(f"  {line}", flush=True),
        ),
    )
    last = trained.history[-1]
    row = {
        "study": study,
        "changes": changes,
        "epochs": round(trained.epochs, 3),
        "million_multiply_adds": round(anatomy.multiply_adds(costs.layers(candidate, len(data.class_names))) / 1e6, 1),
        "cpu_minutes": round(trained.cpu_seconds / 60, 2),
        "validation_accuracy": round(last.validation_accuracy, 4),
        "validation_loss": round(last.validation_loss, 4),
        "train_accuracy": round(last.train_accuracy, 4),
        "candidate": candidate.model_dump(),
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine()["cpu"],
        "date": datetime.now(UTC).date().isoformat(),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"  {row['cpu_minutes']} CPU-minutes, validation {row['validation_accuracy']}", flush=True)


if __name__ == "__main__":
    main()
