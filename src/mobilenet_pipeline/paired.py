"""Two models on the same images: statistics of the images that only one of them gets right. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Pair:
    """How many of `rows` images only the candidate, and only the champion, classifies correctly."""

    only_candidate: int
    only_champion: int
    rows: int

    @property
    def difference(self) -> float:
        """The candidate's accuracy less the champion's, a share."""
        return (self.only_candidate - self.only_champion) / self.rows


def pair(candidate: np.ndarray, champion: np.ndarray) -> Pair:
    """Count from bool (n,), True where the model is right."""
    return Pair(int((candidate & ~champion).sum()), int((champion & ~candidate).sum()), len(candidate))


def p_better(found: Pair) -> float:
    """The exact one-sided McNemar test that the candidate is better: small where it is.

    Were both equally good, each image that divides them would fall to either side like a coin (McNemar 1947).
    """
    return _coin(found.only_candidate, found.only_candidate + found.only_champion)


def p_worse(found: Pair) -> float:
    """The same test, that the candidate is worse."""
    return _coin(found.only_champion, found.only_candidate + found.only_champion)


def lower_bound(found: Pair, level: float) -> float:
    """The lower bound of the difference of accuracies that holds but with the probability `level`.

    Wald's, with half an image added to each side, which holds its level for few such images, too (Agresti and Min
    2005, Statistics in Medicine 24:729).
    """
    gained, lost, rows = found.only_candidate + 0.5, found.only_champion + 0.5, found.rows + 2
    difference = (gained - lost) / rows
    return difference - NormalDist().inv_cdf(1 - level) * math.sqrt(gained + lost - (gained - lost) ** 2 / rows) / rows


def mean_lower_bound(differences: np.ndarray, level: float) -> float:
    """The lower bound of the mean of paired differences (n,) that holds but with the probability `level`.

    By the central limit theorem, for hundreds of images; minus infinity for fewer than two.
    """
    if differences.size < 2:
        return -math.inf
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    return float(differences.mean()) - NormalDist().inv_cdf(1 - level) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for that there are several, in their order (Holm 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _coin(heads: int, tosses: int) -> float:
    from scipy.stats import binom

    return float(binom.sf(heads - 1, tosses, 0.5)) if tosses else 1.0
