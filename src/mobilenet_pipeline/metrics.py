"""Probabilities and labels to metrics. Pure NumPy: the same figures wherever they are worked out."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

# A certain and wrong answer would cost an infinite loss; Keras clips at the same place, so the two losses agree.
SMALLEST_PROBABILITY = 1e-7
SUM_TOLERANCE = 1e-3
TOP = 3
BINS, SMALLEST_BIN = 15, 50
Z_95 = 1.959963984540054


class Metrics(TypedDict):
    """What is known about a model on one set of images; `per_class_accuracy` is None for a class without images."""

    rows: int
    loss: float
    accuracy: float
    top3_accuracy: float
    per_class_accuracy: dict[str, float | None]
    confusion_matrix: list[list[int]]


def evaluate(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Metrics:
    """Score `probabilities` (n, k) against `labels` (n,), the classes being called `class_names` (k).

    The loss is the mean cross-entropy in nats, probabilities clipped at 1e-7. The predicted class is the most probable
    one, the first of them where several are equal. `confusion_matrix` has a row per actual and a column per predicted
    class.

    Raises ValueError for shapes that do not fit, no images, values that are not probabilities, and labels out of range.
    """
    check(probabilities, labels, class_names)
    actual = labels.astype(np.int64)
    exact = probabilities.astype(np.float64)
    ranking = np.argsort(-exact, axis=1, kind="stable")
    confusion = confusion_matrix(actual, ranking[:, 0], len(class_names))
    return {
        "rows": len(actual),
        "loss": float(-np.log(_of_the_actual_class(exact, actual).clip(SMALLEST_PROBABILITY, 1.0)).mean()),
        "accuracy": float((ranking[:, 0] == actual).mean()),
        "top3_accuracy": float((ranking[:, :TOP] == actual[:, None]).any(axis=1).mean()),
        "per_class_accuracy": _per_class(confusion, class_names),
        "confusion_matrix": confusion.tolist(),
    }


def confusion_matrix(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pairs of `actual` and `predicted` (n,) into an int64 matrix (classes, classes), a row per actual class."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `right` in `rows`; (0, 1) where there are no rows.

    Raises ValueError unless 0 <= right <= rows.
    """
    if not 0 <= right <= rows:
        raise ValueError(f"{right} right answers in {rows} rows are not a share")
    if rows == 0:
        return 0.0, 1.0
    share, spread = right / rows, Z_95**2 / rows
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy, and number of images of each bin, by rising confidence.

    `probabilities` (n, k), `labels` (n,). The bins hold equal numbers of images (Nixon et al. 2019, arXiv:1904.01685):
    15 of them, or fewer where they would hold under 50, whose accuracy is mostly chance.
    """
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(labels) // SMALLEST_BIN)))
    means = [(confidence[part].mean(), right[part].mean(), len(part)) for part in parts]
    return tuple(np.array(column) for column in zip(*means, strict=True))  # type: ignore[return-value]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence and accuracy lie apart on average over the bins of `reliability`, a share."""
    confidence, accuracy, count = reliability(probabilities, labels)
    return float((np.abs(confidence - accuracy) * count).sum() / count.sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that `logits` (n, k) must be divided by for the lowest cross-entropy on `labels` (n,).

    Guo et al. 2017, arXiv:1706.04599; between 1/20 and 20.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    exact, actual = logits.astype(np.float64), labels.astype(np.int64)

    def loss(log_temperature: float) -> float:
        return -float(_of_the_actual_class(log_softmax(exact / math.exp(log_temperature), axis=1), actual).mean())

    limit = math.log(20)
    return math.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x)


def check(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise ValueError, naming the value, unless these are the arguments that `evaluate` can score."""
    if probabilities.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            "probabilities must be (images, classes) and labels (images,), "
            f"not {probabilities.shape} and {labels.shape}"
        )
    rows, classes = probabilities.shape
    if rows == 0:
        raise ValueError("there are no images to score")
    if rows != len(labels):
        raise ValueError(f"{rows} rows of probabilities do not fit {len(labels)} labels")
    if classes != len(class_names) or len(set(class_names)) != len(class_names):
        raise ValueError(f"{classes} columns of probabilities need {classes} different class names, not {class_names}")
    _check_probabilities(probabilities)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise ValueError(f"label {labels[outside[0]]} of row {outside[0]} is not in 0 to {classes - 1}")


def _check_probabilities(probabilities: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if broken.size:
        raise ValueError(f"{broken.size} rows of probabilities hold NaN or infinity, the first is row {broken[0]}")
    negative = np.flatnonzero((probabilities < 0).any(axis=1))
    if negative.size:
        raise ValueError(f"{negative.size} rows hold negative probabilities, the first is row {negative[0]}")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if off.size:
        raise ValueError(f"{off.size} rows do not sum to 1, the first is row {off[0]} with {sums[off[0]]:.4g}")


def _of_the_actual_class(probabilities: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(actual)), actual]


def _per_class(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    totals = confusion.sum(axis=1)
    return {
        name: float(confusion[index, index] / totals[index]) if totals[index] else None
        for index, name in enumerate(class_names)
    }
