"""The exported artefact to metrics and predictions: what the gate scores is what will be served."""

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mobilenet_pipeline import corruptions, gate, metrics
from mobilenet_pipeline.artefact import IMAGE_SHAPE, Artefact
from mobilenet_pipeline.checks import Facts, Predictions
from mobilenet_pipeline.images import Dataset
from mobilenet_pipeline.layout import whole

BATCH = 256
SEED, CORRUPTED = 0, 2000
"""Which test images are corrupted, and how: the same for every model of a dataset."""
WARM_UP, TIMED = 20, 300
ARRAYS = (
    "probabilities",
    "labels",
    "rows",
    "validation_probabilities",
    "validation_labels",
    "validation_rows",
    "corrupted_right",
    "corrupted_rows",
    "data_digest",
)


def evaluate(
    artefact_path: Path, data: Dataset, validation_rows: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score the artefact on the test and the validation images, and time it.

    `validation_rows` index into the dataset; rows are put in ascending order. Returns the evaluation's document
    (JSON-ready; per class, confusion and corruptions are of the test images) and the arrays of predictions.npz.

    Raises ValueError where the artefact's answers are not probabilities over the dataset's classes.
    """
    artefact = Artefact(artefact_path)
    predictions: dict[str, np.ndarray] = {"data_digest": np.array(data.digest)}
    found: dict[str, metrics.Metrics] = {}
    test_rows = np.flatnonzero(data.is_test)
    for split, prefix, chosen in (("test", "", test_rows), ("validation", "validation_", validation_rows)):
        rows = np.sort(np.asarray(chosen, dtype=np.int64))
        probabilities = _predict(artefact, data.images, rows, f"evaluating on the {split} images")
        actual = np.asarray(data.labels[rows], dtype=np.uint8)
        try:
            found[split] = metrics.evaluate(probabilities, actual, data.class_names)
        except ValueError as error:
            raise ValueError(f"{artefact_path} on the {split} images: {error}") from None
        predictions |= {f"{prefix}probabilities": probabilities, f"{prefix}labels": actual, f"{prefix}rows": rows}
    some = _corrupted_rows(test_rows)
    right = _robustness(artefact, data.images[some], np.asarray(data.labels[some]))
    # A bit each: of 2,000 images under 15 corruptions they take 4 kB.
    predictions |= {"corrupted_right": np.packbits(list(right.values()), axis=0), "corrupted_rows": some}
    document = _document(found, predictions, data) | {
        "corruptions": {name: float(answers.mean()) for name, answers in right.items()},
        "artefact": {
            "bytes": artefact_path.stat().st_size,
            **_latency(Artefact(artefact_path, threads=1), data.images[some[:1]]),
        },
    }
    return document, predictions


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


def is_complete(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether predictions.npz and the evaluation's document hold all that this version of the project measures, of the
    test images that it corrupts."""
    with np.load(path, allow_pickle=False) as arrays:
        return (
            list(document.get("corruptions", {})) == corruptions.names()
            and set(ARRAYS) <= set(arrays.files)
            and np.array_equal(arrays["corrupted_rows"], _corrupted_rows(arrays["rows"]))
        )


def load_predictions(
    path: Path, document: Mapping[str, Any], preprocessing: str | None, version: str | None = None
) -> Predictions:
    """What the model of registered `version` said about the test images, from its predictions.npz and the evaluation's
    document. `preprocessing` is the fingerprint where it was trained.

    Raises gate.GateError naming the file if it is missing or damaged, or the figures that the evaluation lacks.
    """
    arrays = read_predictions(path)
    if str(arrays["data_digest"]) != document.get("data_digest"):
        raise gate.GateError(f"{path} and its metrics are of different data; evaluate that candidate again")
    return predictions_of(arrays, document, preprocessing, version)


def predictions_of(
    arrays: Mapping[str, np.ndarray], document: Mapping[str, Any], preprocessing: str | None, version: str | None
) -> Predictions:
    """The same, from what `evaluate` gives."""
    try:
        names = list(document["corruptions"])
        right = np.unpackbits(arrays["corrupted_right"], axis=0, count=len(names)).astype(bool)
        facts = Facts(
            corrupted=dict(zip(names, right, strict=True)),
            **document["artefact"],
            preprocessing=preprocessing or "not recorded",
            overlap=document["overlap"],
        )
    except (KeyError, TypeError) as error:
        raise gate.GateError(
            f"the evaluation of {f'version {version}' if version else 'a candidate'} lacks {error}: it is of an "
            "earlier version of this project; evaluate it again (mobilenet-pipeline run --force, with its --recipe)"
        ) from None
    return Predictions(arrays["probabilities"], arrays["labels"], str(arrays["data_digest"]), facts, version)


def write_confusion(path: Path, predictions: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Write the class names `actual,predicted`, a row per test image, the form that `dvc plots` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = predictions["probabilities"].argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        pairs = zip(predictions["labels"], predicted, strict=True)
        writer.writerows([class_names[actual], class_names[guess]] for actual, guess in pairs)


def _predict(artefact: Artefact, images: np.ndarray, rows: np.ndarray, task: str) -> np.ndarray:
    if len(rows) == 0:
        raise ValueError(f"{task}: there are none")
    parts = []
    # The bar appears only on a terminal and only after a second: small datasets are done by then.
    with tqdm(total=len(rows), desc=task, unit="image", delay=1, disable=None, leave=False) as bar:
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            parts.append(artefact.predict(np.ascontiguousarray(images[chunk])))
            bar.update(len(chunk))
    return np.concatenate(parts)


def _corrupted_rows(test_rows: np.ndarray) -> np.ndarray:
    """The test images that are corrupted, in ascending order."""
    return np.sort(np.random.default_rng(SEED).permutation(test_rows)[:CORRUPTED])


def _robustness(artefact: Artefact, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the images (n,) are classified correctly under every corruption."""
    found = {}
    sets = corruptions.corrupted(images, SEED)
    total = len(corruptions.CORRUPTIONS) * len(corruptions.SEVERITIES)
    for name, changed in tqdm(sets, desc="corrupted images", total=total, delay=1, disable=None, leave=False):
        answers = np.concatenate(
            [artefact.predict(part) for part in np.array_split(changed, -(-len(changed) // BATCH))]
        )
        found[name] = answers.argmax(axis=1) == labels
    return found


def _latency(artefact: Artefact, image: np.ndarray) -> dict[str, float]:
    """Median and 99th percentile of the milliseconds that one image takes, after a warm-up."""
    p50, p99 = np.percentile([_milliseconds(artefact, image) for _ in range(WARM_UP + TIMED)][WARM_UP:], [50, 99])
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}


def time_in_turn(candidate: Path, champion: Path) -> tuple[float, float]:
    """The medians of the milliseconds that one image takes the two artefacts, asked by turns: whatever else the machine
    does meanwhile, and whichever machine it is, befalls both.
    """
    both, image = [Artefact(path, threads=1) for path in (candidate, champion)], np.zeros((1, *IMAGE_SHAPE), np.uint8)
    turns = [[_milliseconds(artefact, image) for artefact in both] for _ in range(WARM_UP + TIMED)]
    ours, theirs = np.median(turns[WARM_UP:], axis=0)
    return round(float(ours), 4), round(float(theirs), 4)


def _milliseconds(artefact: Artefact, image: np.ndarray) -> float:
    started = time.perf_counter()
    artefact.predict(image)
    return (time.perf_counter() - started) * 1000


def _document(
    found: dict[str, metrics.Metrics], predictions: Mapping[str, np.ndarray], data: Dataset
) -> dict[str, Any]:
    totals = ("rows", "loss", "accuracy", "top3_accuracy")
    errors = {
        "test": metrics.expected_calibration_error(predictions["probabilities"], predictions["labels"]),
        "validation": metrics.expected_calibration_error(
            predictions["validation_probabilities"], predictions["validation_labels"]
        ),
    }
    return {
        "data_digest": data.digest,
        **{
            split: {key: dict(values)[key] for key in totals} | {"calibration_error": errors[split]}
            for split, values in found.items()
        },
        "per_class_accuracy": found["test"]["per_class_accuracy"],
        "confusion_matrix": found["test"]["confusion_matrix"],
        "class_names": list(data.class_names),
        "overlap": data.overlap,
    }


def _require(path: Path, predictions: dict[str, np.ndarray]) -> None:
    missing = [name for name in ARRAYS if name not in predictions]
    if missing:
        raise gate.GateError(f"{path} lacks {', '.join(missing)}; evaluate that candidate again")
