"""Paired statistics of two models on the same images. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Pair:
    """The numbers of `rows` images that only the candidate, or only the champion, classifies correctly."""

    only_candidate: int
    only_champion: int
    rows: int

    @property
    def difference(self) -> float:
        """The candidate's accuracy minus the champion's, as a share."""
        return (self.only_candidate - self.only_champion) / self.rows


def pair(candidate: np.ndarray, champion: np.ndarray) -> Pair:
    """Return the counts of images that only one model classifies correctly.

    Both arrays are bool (n,), True for a correct answer.
    """
    return Pair(int((candidate & ~champion).sum()), int((champion & ~candidate).sum()), len(candidate))


def pairs_by_group(candidate: np.ndarray, champion: np.ndarray, groups: np.ndarray) -> dict[int, Pair]:
    """Return the counts of each group of images, the lowest group first.

    `candidate` and `champion` are bool (n,), True for a correct answer; `groups` (n,) are integers, such as classes.
    """
    present, index, rows = np.unique(groups, return_inverse=True, return_counts=True)
    gained, lost = (
        np.bincount(index[only], minlength=len(present)) for only in (candidate & ~champion, champion & ~candidate)
    )
    columns = (present.tolist(), gained.tolist(), lost.tolist(), rows.tolist())
    return {group: Pair(*counts) for group, *counts in zip(*columns, strict=True)}


def p_better(counts: Pair) -> float:
    """Return the p-value of the exact one-sided McNemar test (McNemar 1947).

    The alternative is that the candidate is better. Under the null hypothesis, `only_candidate` is binomial with
    probability 1/2 over the images that only one model classifies correctly.
    """
    return _upper_tail(counts.only_candidate, counts.only_candidate + counts.only_champion)


def p_worse(counts: Pair) -> float:
    """Return the p-value of the same test; the alternative is a worse candidate."""
    return _upper_tail(counts.only_champion, counts.only_candidate + counts.only_champion)


def lower_bound(counts: Pair, level: float) -> float:
    """Return the one-sided (1 − `level`) lower bound of the accuracy difference.

    It is Wald's bound with 0.5 added to each of the four cells of the 2×2 table. So it keeps its level for small
    counts, too (Agresti and Min 2005, Statistics in Medicine 24:729).
    """
    gained, lost, rows = counts.only_candidate + 0.5, counts.only_champion + 0.5, counts.rows + 2
    difference = (gained - lost) / rows
    return difference - NormalDist().inv_cdf(1 - level) * math.sqrt(gained + lost - (gained - lost) ** 2 / rows) / rows


def mean_lower_bound(differences: np.ndarray, level: float) -> float:
    """Return the one-sided (1 − `level`) lower bound of the mean of `differences`.

    `differences` (n,) are paired. The normal approximation needs hundreds of images; with fewer than two images, the
    bound is minus infinity.
    """
    if differences.size < 2:
        return -math.inf
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    return float(differences.mean()) - NormalDist().inv_cdf(1 - level) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the Holm-adjusted p-values, in the given order (Holm 1979)."""
    values, adjusted = np.asarray(p_values, np.float64), np.empty(len(p_values))
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return adjusted.tolist()


def _upper_tail(successes: int, trials: int) -> float:
    """Return the probability of `successes` or more in `trials` fair coin tosses."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, 0.5)) if trials else 1.0
