"""Evaluate the exported artefact, so that the gate judges the model that is served."""

import csv
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.evaluation import corruptions, other_images
from mobilenet_pipeline.evaluation.predictions import ARRAYS
from mobilenet_pipeline.inference.artefact import Answers, Artefact
from mobilenet_pipeline.metrics import conformal, scores
from mobilenet_pipeline.system.memory import at_once

BATCH = 256
"""Most images that are scored at once."""
SEED, CORRUPTED = 0, 2000
"""Seed and number of the corrupted test images. They are the same for every model of a dataset."""
WARM_UP, TIMED = 20, 300
FAMILIAR_FLAGGED = 0.05
"""The share of images like the training images that is flagged as unfamiliar: the rate at which such flags are usually
compared (Liu et al. 2020). A lower rate misses more unfamiliar images."""


def evaluate(
    artefact_path: Path, data: Dataset, validation_rows: np.ndarray, coverage: float | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score the artefact on the test and the validation images, and time it.

    `validation_rows` are rows of the dataset; they are sorted. Returns the evaluation's document and the arrays of
    predictions.npz. The document is JSON-ready; its accuracies per class, confusion matrix and corruptions are of the
    test images. Its prediction sets have this `coverage`, a share; there are none with None. It says how often images
    are flagged as unfamiliar, unless the artefact gives no energies.

    Raises ValueError if the artefact's answers are not probabilities of the dataset's classes.
    """
    artefact = Artefact(artefact_path)
    predictions: dict[str, np.ndarray] = {"data_digest": np.array(data.digest)}
    metrics: dict[str, scores.Metrics] = {}
    energies: dict[str, np.ndarray | None] = {}
    test_rows = np.flatnonzero(data.is_test)
    for split, prefix, chosen in (("test", "", test_rows), ("validation", "validation_", validation_rows)):
        rows = np.sort(np.asarray(chosen, dtype=np.int64))
        answers = _answer(artefact, data.images, rows, f"evaluating on the {split} images")
        probabilities, energies[split] = answers.probabilities, answers.energy
        actual = np.asarray(data.labels[rows])
        try:
            metrics[split] = scores.evaluate(probabilities, actual, data.class_names)
        except ValueError as error:
            raise ValueError(f"{artefact_path} on the {split} images: {error}") from None
        predictions |= {f"{prefix}probabilities": probabilities, f"{prefix}labels": actual, f"{prefix}rows": rows}
    corrupted_rows = _corrupted_rows(test_rows)
    labels = np.asarray(data.labels[corrupted_rows])
    parts = [partial(data.images.__getitem__, chunk) for chunk in _chunks(data.images, corrupted_rows)]
    corrupted = dict(_answer_sets(artefact, corruptions.corrupted(parts, SEED), "corrupted images"))
    right = {name: answers.probabilities.argmax(axis=1) == labels for name, answers in corrupted.items()}
    # One bit per answer: 2,000 images with 15 corruptions take 4 kB.
    predictions |= {"corrupted_right": np.packbits(list(right.values()), axis=0), "corrupted_rows": corrupted_rows}
    document = _document(metrics, predictions, data) | {
        "corruptions": {name: float(answers.mean()) for name, answers in right.items()},
        "artefact": {
            "bytes": artefact_path.stat().st_size,
            **_latency(Artefact(artefact_path, threads=1), data.images[corrupted_rows[:1]]),
        },
        "prediction_sets": None if coverage is None else _prediction_sets(predictions, coverage),
        "unfamiliar": None,
    }
    if energies["validation"] is not None:
        flagged = {"test": energies["test"]} | {name: answers.energy for name, answers in corrupted.items()}
        others = (
            (kind, [images[chunk] for chunk in _chunks(images, np.arange(len(images)))])
            for kind, images in other_images.others(data.images, SEED)
        )
        sets = _answer_sets(artefact, others, "other images")
        kinds = {kind: answers.energy for kind, answers in sets}
        document["unfamiliar"] = _unfamiliar(energies["validation"], flagged, kinds)
    return document, predictions


def accuracy_beside_twins(predictions: Mapping[str, np.ndarray], twin_rows: Sequence[int]) -> dict[str, Any]:
    """Return the test accuracies of images with and without a near twin among the training images.

    `predictions` are the arrays of predictions.npz, and `twin_rows` the rows of the dataset with a near twin. An
    accuracy of no images is None.
    """
    right = predictions["probabilities"].argmax(axis=1) == predictions["labels"]
    has_twin = np.isin(predictions["rows"], twin_rows)
    parts = {"accuracy_with": right[has_twin], "accuracy_without": right[~has_twin]}
    return {"rows": int(has_twin.sum())} | {
        key: float(part.mean()) if len(part) else None for key, part in parts.items()
    }


def is_complete(arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> bool:
    """Return whether an evaluation has every measurement that the gate compares.

    It must have them for the same corrupted test images. Prediction sets and energies may be missing: the gate checks
    them for a candidate by itself, and does not compare them with a champion's.
    """
    return (
        list(document.get("corruptions", {})) == corruptions.names()
        and set(ARRAYS) <= set(arrays)
        and np.array_equal(arrays["corrupted_rows"], _corrupted_rows(arrays["rows"]))
    )


def write_confusion(path: Path, predictions: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Write a CSV with columns `actual` and `predicted` for `dvc plots`.

    It has a row of class names per test image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = predictions["probabilities"].argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        pairs = zip(predictions["labels"], predicted, strict=True)
        writer.writerows([class_names[actual], class_names[answer]] for actual, answer in pairs)


def _answer(artefact: Artefact, images: np.ndarray, rows: np.ndarray, task: str) -> Answers:
    if len(rows) == 0:
        raise ValueError(f"{task}: there are no images")
    probabilities, done = np.empty((0, 0), np.float32), 0
    energies: list[np.ndarray] = []
    # The bar appears only on a terminal and only after a second, so small datasets show none.
    with tqdm(total=len(rows), desc=task, unit="image", delay=1, disable=None, leave=False) as bar:
        for chunk in _chunks(images, rows):
            answers = artefact.answer(np.ascontiguousarray(images[chunk]))
            if done == 0:  # one array from the start: parts and their copy would need twice the memory
                probabilities = np.empty((len(rows), *answers.probabilities.shape[1:]), answers.probabilities.dtype)
            probabilities[done : done + len(chunk)] = answers.probabilities
            energies += [] if answers.energy is None else [answers.energy]
            done += len(chunk)
            bar.update(len(chunk))
    return Answers(probabilities, np.concatenate(energies) if energies else None)


def _corrupted_rows(test_rows: np.ndarray) -> np.ndarray:
    """Return the rows of the corrupted test images, in ascending order."""
    return np.sort(np.random.default_rng(SEED).permutation(test_rows)[:CORRUPTED])


def _chunks(images: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Return the rows in parts that fit into memory together."""
    together = at_once(BATCH, *images.shape[1:3])
    return [rows[start : start + together] for start in range(0, len(rows), together)]


def _answer_sets(
    artefact: Artefact, sets: Iterator[tuple[str, Iterable[np.ndarray]]], task: str
) -> Iterator[tuple[str, Answers]]:
    """Yield (name, answers) for every (name, images in parts)."""
    for name, parts in tqdm(sets, desc=task, unit="set", delay=1, disable=None, leave=False):
        yield name, Answers.joined(artefact.answer(part) for part in parts)


def _prediction_sets(predictions: Mapping[str, np.ndarray], coverage: float) -> dict[str, Any]:
    """Return the threshold of the prediction sets from the validation images, and their coverage of the test images."""
    calibration = predictions["validation_labels"]
    threshold = conformal.probability_threshold(predictions["validation_probabilities"], calibration, coverage)
    probabilities, labels = predictions["probabilities"], predictions["labels"]
    sizes = conformal.set_sizes(probabilities, threshold)
    return {
        "stated_coverage": coverage,
        "threshold": threshold,
        "calibration_rows": len(calibration),
        "coverage": float(conformal.covered(probabilities, labels, threshold).mean()),
        "mean_size": float(sizes.mean()),
        "sizes": {str(size): int(count) for size, count in enumerate(np.bincount(sizes)) if count},
    }


def _unfamiliar(
    validation: np.ndarray, flagged: Mapping[str, np.ndarray | None], kinds: Mapping[str, np.ndarray | None]
) -> dict[str, Any]:
    """Return the threshold of the energies from the validation images, and the share below it of every other set.

    `flagged` has the energies of the test images and of every corruption, `kinds` those of images of other kinds.
    """
    threshold = conformal.energy_threshold(validation, FAMILIAR_FLAGGED)

    def shares(energies: Mapping[str, np.ndarray | None]) -> dict[str, float]:
        none = -np.inf if threshold is None else threshold
        return {name: float((each < none).mean()) for name, each in energies.items() if each is not None}

    known = shares(flagged)
    return {
        "stated_share": FAMILIAR_FLAGGED,
        "threshold": threshold,
        "test": known.pop("test"),
        "corruptions": known,
        "other_images": shares(kinds),
    }


def _latency(artefact: Artefact, image: np.ndarray) -> dict[str, float]:
    """Return the median and p99 latency of one image in ms, after a warm-up."""
    p50, p99 = np.percentile([_milliseconds(artefact, image) for _ in range(WARM_UP + TIMED)][WARM_UP:], [50, 99])
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}


def time_in_turn(paths: Sequence[Path]) -> list[float]:
    """Return the median latencies of the artefacts for one image, in ms.

    The artefacts answer in turn, so that other load on the machine affects all of them.
    """
    artefacts = [Artefact(path, threads=1) for path in paths]
    image = np.zeros((1, *artefacts[0].image_shape), np.uint8)
    turns = [[_milliseconds(artefact, image) for artefact in artefacts] for _ in range(WARM_UP + TIMED)]
    return [round(float(median), 4) for median in np.median(turns[WARM_UP:], axis=0)]


def _milliseconds(artefact: Artefact, image: np.ndarray) -> float:
    started = time.perf_counter()
    artefact.predict(image)
    return (time.perf_counter() - started) * 1000


def _document(
    metrics: dict[str, scores.Metrics], predictions: Mapping[str, np.ndarray], data: Dataset
) -> dict[str, Any]:
    totals = ("rows", "loss", "accuracy", "macro_accuracy", "top3_accuracy")
    errors = {
        "test": scores.expected_calibration_error(predictions["probabilities"], predictions["labels"]),
        "validation": scores.expected_calibration_error(
            predictions["validation_probabilities"], predictions["validation_labels"]
        ),
    }
    return {
        "data_digest": data.digest,
        **{
            split: {key: dict(values)[key] for key in totals} | {"calibration_error": errors[split]}
            for split, values in metrics.items()
        },
        "per_class_accuracy": metrics["test"]["per_class_accuracy"],
        "confusion_matrix": metrics["test"]["confusion_matrix"],
        "class_names": list(data.class_names),
        "overlap": data.overlap,
    }
