"""The exported artefact to metrics and predictions: what the gate scores is what will be served."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mobilenet_pipeline import gate, metrics
from mobilenet_pipeline.artefact import Artefact
from mobilenet_pipeline.layout import whole

BATCH = 256
ARRAYS = (
    "probabilities",
    "labels",
    "rows",
    "validation_probabilities",
    "validation_labels",
    "validation_rows",
    "data_digest",
)


def evaluate(
    artefact_path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    test_rows: np.ndarray,
    validation_rows: np.ndarray,
    class_names: Sequence[str],
    digest: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score the artefact on the test and the validation images.

    `images` (n, 32, 32, 3) uint8 and `labels` (n,) are the whole dataset, memory-mapped or not; the rows index into
    them and are put in ascending order. Returns the metrics document (JSON-ready; per class and confusion are of the
    test images) and the arrays of predictions.npz.

    Raises ValueError where the artefact's answers are not probabilities over `class_names`.
    """
    artefact = Artefact(artefact_path)
    predictions: dict[str, np.ndarray] = {"data_digest": np.array(digest)}
    found: dict[str, metrics.Metrics] = {}
    for split, prefix, chosen in (("test", "", test_rows), ("validation", "validation_", validation_rows)):
        rows = np.sort(np.asarray(chosen, dtype=np.int64))
        probabilities = _predict(artefact, images, rows, f"evaluating on the {split} images")
        actual = np.asarray(labels[rows], dtype=np.uint8)
        try:
            found[split] = metrics.evaluate(probabilities, actual, class_names)
        except ValueError as error:
            raise ValueError(f"{artefact_path} on the {split} images: {error}") from None
        predictions |= {f"{prefix}probabilities": probabilities, f"{prefix}labels": actual, f"{prefix}rows": rows}
    return _document(found, class_names, digest), predictions


def predict(artefact_path: Path, images: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """Probabilities float32 (n, classes) of `images` (n, 32, 32, 3) uint8, worked out `batch` images at a time."""
    return _predict(Artefact(artefact_path), images, np.arange(len(images)), "predicting", batch)


def save_predictions(path: Path, predictions: dict[str, np.ndarray]) -> None:
    """Write predictions.npz whole or not at all; the same predictions give the same bytes."""
    _require(path, predictions)
    with whole(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: predictions[name] for name in ARRAYS})


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a predictions.npz. Raises gate.GateError naming the file if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            predictions = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise gate.GateError(f"{path} does not exist; evaluate that candidate first") from None
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib or NumPy trip over
        raise gate.GateError(f"{path} cannot be read ({error}); evaluate that candidate again") from None
    _require(path, predictions)
    return predictions


def load_predictions(path: Path, version: str | None = None) -> gate.Predictions:
    """What the model of registered `version` said about the test images, from its predictions.npz.

    Raises gate.GateError naming the file if it is missing or damaged.
    """
    arrays = read_predictions(path)
    return gate.Predictions(arrays["probabilities"], arrays["labels"], str(arrays["data_digest"]), version)


def write_confusion(path: Path, predictions: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Write the class names `actual,predicted`, a row per test image, the form that `dvc plots` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = predictions["probabilities"].argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        pairs = zip(predictions["labels"], predicted, strict=True)
        writer.writerows([class_names[actual], class_names[guess]] for actual, guess in pairs)


def _predict(artefact: Artefact, images: np.ndarray, rows: np.ndarray, task: str, batch: int = BATCH) -> np.ndarray:
    if len(rows) == 0:
        raise ValueError(f"{task}: there are none")
    parts = []
    # The bar appears only on a terminal and only after a second: small datasets are done by then.
    with tqdm(total=len(rows), desc=task, unit="image", delay=1, disable=None, leave=False) as bar:
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            parts.append(artefact.predict(np.ascontiguousarray(images[chunk])))
            bar.update(len(chunk))
    return np.concatenate(parts)


def _document(found: dict[str, metrics.Metrics], class_names: Sequence[str], digest: str) -> dict[str, Any]:
    totals = ("rows", "loss", "accuracy", "top3_accuracy")
    return {
        "data_digest": digest,
        **{split: {key: dict(values)[key] for key in totals} for split, values in found.items()},
        "per_class_accuracy": found["test"]["per_class_accuracy"],
        "confusion_matrix": found["test"]["confusion_matrix"],
        "class_names": list(class_names),
    }


def _require(path: Path, predictions: dict[str, np.ndarray]) -> None:
    missing = [name for name in ARRAYS if name not in predictions]
    if missing:
        raise gate.GateError(f"{path} lacks {', '.join(missing)}; evaluate that candidate again")
