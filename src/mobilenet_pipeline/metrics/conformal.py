"""Split conformal prediction: thresholds from validation images, with a promise for other images like them. Pure.

The promises hold for exchangeable images: validation and new images come from the same source, in no particular order.
The validation images also fix the temperature of the probabilities. That one number hardly depends on any single image,
so validation and test images stay nearly exchangeable; the gate checks the coverage on the test images.
"""

import math
from functools import lru_cache

import numpy as np

from mobilenet_pipeline.inference.trust import prediction_sets

LEVEL = 0.025
"""The chance that a threshold covers less than it promises, and that a sample lies below `least_covered`: half of what
a 95 % interval misses."""


def probability_threshold(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> float:
    """Return the least probability of a class in a prediction set, so that the sets have this coverage.

    `probabilities` (n, k) and `labels` (n,) are of validation images. Of the sets of `prediction_sets` with this
    threshold, a share of at least `coverage`, from 0 to 1, contains the class of a new image. This holds for 97.5 % of
    validation sets, not only on average over them: enough validation images are covered to show it in a binomial test
    (Vovk 2012; Park et al. 2020 call such sets probably approximately correct). The result is 1 if the most probable
    class alone has this coverage, and 0, which puts every class into every set, if n is too small: 72 images suffice
    for 95 %.

    The score of a class is 1 − probability (Sadinle et al. 2019, LAC), which has the smallest sets on average, also
    with 1,000 classes. The score of the most probable class is 0, because it is in every set: these sets are nested
    (Gupta et al. 2022), so the promise holds for them as they are, without an empty set.
    """
    rows = len(labels)
    needed = _needed(rows, coverage)
    if needed > rows:
        return 0.0
    own = probabilities[np.arange(rows), labels.astype(np.int64)].astype(np.float64)
    own[probabilities.argmax(axis=1) == labels] = 1.0
    return float(np.sort(own)[rows - needed])


def energy_threshold(energies: np.ndarray, share: float) -> float | None:
    """Return the energy below which at most a `share` of images like those of `energies` (n,) lies.

    An image below it is an outlier with a conformal p-value of at most `share` (Bates et al. 2023). None if n is too
    small: 19 images suffice for 5 %.
    """
    below = math.floor(round((len(energies) + 1) * share, 6))
    return float(np.sort(energies)[below - 1]) if below else None


def covered(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether each prediction set contains the class, bool (n,), for probabilities (n, k) and labels (n,)."""
    return prediction_sets(probabilities, threshold)[np.arange(len(labels)), labels.astype(np.int64)]


def set_sizes(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return the number of classes in each prediction set, int (n,)."""
    return prediction_sets(probabilities, threshold).sum(axis=1)


@lru_cache
def least_covered(rows: int, coverage: float) -> int:
    """Return the least number of `rows` images that sets with this coverage cover, but for a chance of `LEVEL`."""
    from scipy.stats import binom

    return int(binom.ppf(LEVEL, rows, coverage))


@lru_cache
def _needed(rows: int, coverage: float) -> int:
    """Return how many of the validation images the sets must cover; more than `rows` if they are too few."""
    from scipy.stats import binom

    return int(binom.ppf(1 - LEVEL, rows, coverage)) + 1
