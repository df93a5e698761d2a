"""What a version says of its own answer: a prediction set, and whether the image is unlike its training images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any, Self

import numpy as np

from mobilenet_pipeline.inference.artefact import Answers


@dataclass(frozen=True)
class Thresholds:
    """Limits from the validation images, that travel with a version.

    The prediction set of an image has its most probable class, and every class whose probability is at least
    `probability`; a share `coverage` of the images has the true class in the set. An image is unfamiliar if its energy
    is below `energy`. A version without a limit has None.
    """

    coverage: float | None = None
    probability: float | None = None
    energy: float | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """Return the thresholds in a version's metadata. Versions of earlier releases have none."""
        return cls(**(metadata.get("thresholds") or {}))

    def to_json(self) -> dict[str, float | None]:
        """Return the entry `thresholds` of a version's metadata."""
        return asdict(self)

    def unfamiliar(self, energy: np.ndarray | None) -> np.ndarray | None:
        """Return whether each image is unfamiliar, bool (n,), from energies (n,). None without limit or energies."""
        return None if self.energy is None or energy is None else energy < self.energy

    def remarks(self, answers: Answers, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return `prediction_set` and `unfamiliar` of each image: class names, the most probable first, and a bool.

        Either is None if the version lacks its limit, or the artefact its energies.
        """
        unfamiliar = self.unfamiliar(answers.energy)
        sets = repeat(None) if self.probability is None else _sets(answers.probabilities, self.probability, class_names)
        flags = repeat(None) if unfamiliar is None else unfamiliar.tolist()
        rows = zip(answers.probabilities, sets, flags, strict=False)  # the first ends all
        return [{"prediction_set": names, "unfamiliar": flag} for _, names, flag in rows]


def answering(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a version's answers beside its artefact: resizing and limits, from its metadata."""
    return {"resize": metadata.get("resize", "crop"), **Thresholds.of(metadata).to_json()}


def answer_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two results of `answering` are the same, but for the rounding of another machine."""

    def same(a: Any, b: Any) -> bool:
        return a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-3))

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


def prediction_sets(probabilities: np.ndarray, least: float) -> np.ndarray:
    """Return the sets bool (n, k): the most probable class, and the classes with at least the probability `least`.

    `probabilities` (n, k). No set is empty.
    """
    members = probabilities >= least
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


def _sets(probabilities: np.ndarray, least: float, class_names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the names in each of the `prediction_sets`, the most probable first; equals stay in order."""
    # Most sets have one class. For one image, more calls of NumPy would take a tenth of the network's time.
    counts = np.count_nonzero(probabilities >= least, axis=1).tolist()
    for row, count, best in zip(probabilities, counts, probabilities.argmax(axis=1).tolist(), strict=True):
        chosen = [best] if count < 2 else np.argsort(-row, kind="stable")[:count].tolist()
        yield [class_names[index] for index in chosen]
