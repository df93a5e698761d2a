"""Probabilities and labels to metrics, in pure NumPy."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np

# Without a minimum, a wrong answer with probability 1 has infinite loss. Keras clips at the same value.
SMALLEST_PROBABILITY = 1e-7
SUM_TOLERANCE = 1e-3
TOP = 3
TOGETHER = 2**12
"""Images whose probabilities are compared at a time: three comparisons of all would need most of their memory again."""
BINS, SMALLEST_BIN = 15, 50
SHOWN = 30
"""Figures and documents show up to so many classes one by one; of more classes, the worst and the best `ENDS`."""
ENDS = 10


class Metrics(TypedDict):
    """The metrics of a model on one set of images. `per_class_accuracy` is None for a class without images.

    `macro_accuracy` is the mean over the classes with images, in which every class counts alike.
    """

    rows: int
    loss: float
    accuracy: float
    macro_accuracy: float
    top3_accuracy: float
    per_class_accuracy: dict[str, float | None]
    confusion_matrix: list[list[int]]


def evaluate(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Metrics:
    """Score `probabilities` (n, k) against `labels` (n,), for k `class_names`.

    The loss is the mean cross-entropy in nats, with probabilities clipped at 1e-7. The predicted class has the highest
    probability; the first such class wins a tie. `confusion_matrix` has a row per actual and a column per predicted
    class.

    Raises ValueError if the shapes do not match, there are no images, the values are not probabilities, or a label is
    out of range.
    """
    check(probabilities, labels, class_names)
    actual, predicted = labels.astype(np.int64), probabilities.argmax(axis=1)
    confusion = confusion_matrix(actual, predicted, len(class_names))
    per_class = _per_class(confusion, class_names)
    return {
        "rows": len(actual),
        "loss": cross_entropy(probabilities, actual),
        "accuracy": float((predicted == actual).mean()),
        "macro_accuracy": float(np.mean([share for share in per_class.values() if share is not None])),
        "top3_accuracy": float((_rank_of_actual(probabilities, actual) < TOP).mean()),
        "per_class_accuracy": per_class,
        "confusion_matrix": confusion.tolist(),
    }


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats of `probabilities` (n, k), clipped at 1e-7, for `labels` (n,)."""
    actual = _of_the_actual_class(probabilities, labels).astype(np.float64)
    return float(-np.log(actual.clip(SMALLEST_PROBABILITY, 1.0)).mean()) + 0.0  # not -0.0


def confusion_matrix(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pairs of `actual` and `predicted` classes, both (n,).

    Returns an int64 matrix (classes, classes) with a row per actual class.
    """
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def shown_classes(matrices: Iterable[Sequence[Sequence[int]] | np.ndarray]) -> list[int]:
    """Return all classes; of more than `SHOWN`, the `ENDS` with the lowest and those with the highest mean accuracy.

    The lowest is the first. `matrices` are confusion matrices of the same images, one per model. Of many classes, one
    without images is not shown.
    """
    stack = np.array(list(matrices))
    right, rows = np.diagonal(stack, axis1=1, axis2=2), stack.sum(axis=2)
    if right.shape[1] <= SHOWN:
        return list(range(right.shape[1]))
    accuracy = (right / np.maximum(rows, 1)).mean(axis=0)
    filled = np.flatnonzero(rows.min(axis=0) > 0)
    ordered = filled[np.argsort(accuracy[filled], kind="stable")].tolist()
    return ordered if len(ordered) <= 2 * ENDS else ordered[:ENDS] + ordered[-ENDS:]


def wilson_interval(right: int, rows: int, level: float = 0.05) -> tuple[float, float]:
    """Return the (1 − `level`) Wilson score interval of the share `right` / `rows`.

    Without rows, the interval is (0, 1). Raises ValueError unless 0 <= right <= rows. (Wilson 1927)
    """
    if not 0 <= right <= rows:
        raise ValueError(f"{right} right answers in {rows} rows are not a share; pass 0 to {rows}")
    if rows == 0:
        return 0.0, 1.0
    share, spread = right / rows, NormalDist().inv_cdf(1 - level / 2) ** 2 / rows
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, accuracy and number of images per bin.

    `probabilities` (n, k), `labels` (n,). The bins rise in confidence and have equal numbers of images (Nixon et al.
    2019, arXiv:1904.01685). There are 15 bins, or fewer so that each has at least 50 images: below that, the accuracy
    of a bin is mostly noise.
    """
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(labels) // SMALLEST_BIN)))
    means = [(confidence[part].mean(), right[part].mean(), len(part)) for part in parts]
    return tuple(np.array(column) for column in zip(*means, strict=True))  # type: ignore[return-value]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean |confidence − accuracy| over the bins of `reliability`.

    The result is a share, weighted by the images of each bin (Naeini et al. 2015).
    """
    confidence, accuracy, count = reliability(probabilities, labels)
    return float((np.abs(confidence - accuracy) * count).sum() / count.sum())


def check(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise ValueError, naming the value, if `evaluate` cannot score the arguments."""
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
    # A sum is finite only if all its terms are. With 1,000 classes, another pass over all values is slow.
    sums = probabilities.sum(axis=1, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(sums))
    if broken.size:
        raise ValueError(f"{broken.size} rows of probabilities have NaN or infinity, the first is row {broken[0]}")
    negative = np.flatnonzero(probabilities.min(axis=1) < 0)
    if negative.size:
        raise ValueError(f"{negative.size} rows have negative probabilities, the first is row {negative[0]}")
    off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if off.size:
        raise ValueError(f"{off.size} rows do not sum to 1, the first is row {off[0]} with {sums[off[0]]:.4g}")


def _rank_of_actual(probabilities: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return how many classes rank before the actual one: more probable, or as probable and listed first."""
    before, own = np.empty(len(actual), np.int64), _of_the_actual_class(probabilities, actual)[:, None]
    for start in range(0, len(actual), TOGETHER):
        rows = slice(start, start + TOGETHER)
        part, listed_first = probabilities[rows], np.arange(probabilities.shape[1]) < actual[rows, None]
        before[rows] = np.count_nonzero(part > own[rows], axis=1)
        before[rows] += np.count_nonzero((part == own[rows]) & listed_first, axis=1)
    return before


def _of_the_actual_class(probabilities: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(actual)), actual]


def _per_class(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    totals = confusion.sum(axis=1)
    return {
        name: float(confusion[index, index] / totals[index]) if totals[index] else None
        for index, name in enumerate(class_names)
    }
