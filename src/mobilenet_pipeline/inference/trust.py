"""What a version says of its own answer: a prediction set, and whether the image is unlike its training images."""

from collections.abc import Iterable, Mapping, Sequence
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

    def sets(self, probabilities: np.ndarray) -> np.ndarray | None:
        """Return the prediction sets bool (n, k) of probabilities (n, k), None without a limit."""
        return None if self.probability is None else prediction_sets(probabilities, self.probability)

    def unfamiliar(self, energy: np.ndarray | None) -> np.ndarray | None:
        """Return whether each image is unfamiliar, bool (n,), from energies (n,). None without limit or energies."""
        return None if self.energy is None or energy is None else energy < self.energy

    def remarks(self, answers: Answers, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return `prediction_set` and `unfamiliar` of each image: class names, the most probable first, and a bool.

        Either is None if the version lacks its limit, or the artefact its energies.
        """
        count = len(answers.probabilities)
        sets, unfamiliar = self.sets(answers.probabilities), self.unfamiliar(answers.energy)
        names: Iterable[list[str] | None] = repeat(None, count)
        if sets is not None:
            rows = zip(answers.probabilities, sets, strict=True)
            names = ([class_names[index] for index in most_probable_first(*row)] for row in rows)
        flags = repeat(None, count) if unfamiliar is None else unfamiliar.tolist()
        return [{"prediction_set": name, "unfamiliar": flag} for name, flag in zip(names, flags, strict=True)]


def prediction_sets(probabilities: np.ndarray, least: float) -> np.ndarray:
    """Return the sets bool (n, k): the most probable class, and the classes with at least the probability `least`.

    `probabilities` (n, k). No set is empty.
    """
    members = probabilities >= least
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


def most_probable_first(probabilities: np.ndarray, members: np.ndarray) -> list[int]:
    """Return the classes of one set, from probabilities (k,) and members bool (k,); equals stay in order."""
    chosen = np.flatnonzero(members)
    return chosen[np.argsort(-probabilities[chosen], kind="stable")].tolist() if len(chosen) > 1 else chosen.tolist()
