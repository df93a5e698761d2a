"""Compare the answers of a window with the reference. Pure.

Every test has a p-value and a smallest effect, and both must speak for drift. So a window of many images finds no drift
in a change that is too small to matter, and a window of few images finds none in noise. SciPy computes the p-values:

- a two-sample Kolmogorov-Smirnov test for each input statistic and the confidence (Smirnov 1948),
- the exact conditional test of two Poisson rates for the share of each class (Przyborowski and Wilenski 1940), so that
  one class of many is not averaged away,
- a chi-squared test of all classes (Pearson 1900), which sees many shares that change at once in few images,
- exact one-sided binomial tests for slow answers, failed requests and refused uploads, against limits of the recipe:
  the test images have no latency in service.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.metrics import paired
from mobilenet_pipeline.monitoring.answers import Answers

SLOW_SHARE = 0.01
"""Share of the single images that may take longer than the recipe's `milliseconds`: the limit is a p99."""
MIX = "class mix"
CAUSES = ("images", "classes", "confidence", "latency", "errors", "refusals")
RETRAINABLE = ("images", "classes", "confidence")
"""The causes that a training may remedy."""


@dataclass(frozen=True)
class Finding:
    """One test of one window.

    `effect` is what the test measures and `p` its p-value, Holm-adjusted over the window. `reference` and `window` are
    the compared values: medians, shares, or limit and share. `large`: the effect is as large as the recipe wants.
    `drifted`: it is large, and significant.
    """

    test: str
    cause: str
    effect: float
    p: float
    reference: float
    window: float
    large: bool
    drifted: bool = False

    @property
    def sentence(self) -> str:
        """What has changed, for people."""
        if self.test == MIX:
            return f"{self.window:.0%} of the predictions are of other classes than on the test images"
        if self.cause == "classes":
            return f"{self.test} is {self.window:.1%} of the predictions, {self.reference:.1%} on the test images"
        if self.cause == "images":
            distance = f"distance {self.effect:.2f}"
            return f"{self.test} is {self.window:.1f}, {self.reference:.1f} on the test images (medians, {distance})"
        if self.cause == "confidence":
            values = f"{self.window:.1%}, {self.reference:.1%} on the test images"
            return f"confidence is {values} (medians, distance {self.effect:.2f})"
        what = {
            "latency": "of the single images took too long",
            "errors": "of the requests failed",
            "refusals": "of the uploads were refused",
        }
        return f"{self.window:.1%} {what[self.cause]}, and {self.reference:.1%} may"


def compare(answers: Answers, failures: np.ndarray, reference: Reference, limits: Monitoring) -> list[Finding]:
    """Return the findings of a window, of every test that it has data for.

    `failures` (m,) are the HTTP statuses of the window's failed requests.
    """
    findings = [
        *_distributions(answers, reference, limits),
        *_classes(answers, reference, limits),
        *_limits(answers, failures, limits),
    ]
    adjusted = paired.holm([finding.p for finding in findings])
    return [
        replace(finding, p=p, drifted=finding.large and p < limits.significance)
        for finding, p in zip(findings, adjusted, strict=True)
    ]


def _distributions(answers: Answers, reference: Reference, limits: Monitoring) -> Iterator[Finding]:
    columns = {name: (reference.statistics[:, i], answers.statistics[:, i]) for i, name in enumerate(reference.names)}
    for name, (expected, found) in (columns | {"confidence": (reference.confidence, answers.confidence)}).items():
        known = found[~np.isnan(found)]
        if known.size == 0:  # a record from before this statistic
            continue
        distance, p = distance_of(expected, known)
        middle, middle_now = float(np.median(expected)), float(np.median(known))
        cause = "confidence" if name == "confidence" else "images"
        large = distance >= limits.distance
        yield Finding(name.replace("_", " "), cause, distance, p, middle, middle_now, large)


def distance_of(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance of two samples (n,) and (m,), and its p-value.

    The p-value is that of the one-sample distribution with n m / (n + m) images, as SciPy's `asymp`: it is exact enough
    from ten images on, and the exact one takes seconds for a reference of 10,000.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(one, other, method="asymp")
    return float(result.statistic), float(result.pvalue)


def _classes(answers: Answers, reference: Reference, limits: Monitoring) -> Iterator[Finding]:
    names = reference.class_names
    known = answers.predicted[answers.predicted >= 0]
    if known.size == 0:
        return
    expected = np.bincount(reference.predicted, minlength=len(names))
    found = np.bincount(known, minlength=len(names))
    if known.size >= len(names):  # with fewer, Pearson's approximation fails
        distance, p = mix_of(expected, found)
        yield Finding(MIX, "classes", distance, p, 0.0, distance, distance >= limits.distance)
    ratios, p_values = ratios_of(expected, found)
    for name, ratio, p, before, now in zip(names, ratios, p_values, expected, found, strict=True):
        if before + now == 0:
            continue
        large = ratio <= limits.class_ratio or ratio >= 1 / limits.class_ratio
        share, share_now = float(before / expected.sum()), float(now / found.sum())
        yield Finding(f"class {name}", "classes", float(ratio), float(p), share, share_now, bool(large))


def ratios_of(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratio of the shares of each class, found to expected, and the two-sided p-values.

    `expected` (k,) and `found` (k,) are counts of all k classes. Given their sum, the count of a class is binomial.
    """
    from scipy.stats import binom

    total, share = expected + found, found.sum() / (expected.sum() + found.sum())
    tails = np.minimum(binom.cdf(found, total, share), binom.sf(found - 1, total, share))
    # Half an image in the place of none, so that a class without expected images has a ratio.
    before, now = np.maximum(expected, 0.5) / expected.sum(), found / found.sum()
    return now / before, np.minimum(1.0, 2 * tails)


def mix_of(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Return the total variation distance of the shares of all classes, and the p-value of Pearson's test.

    `expected` (k,) and `found` (k,) are counts. The distance is the share of images that must change their class.
    """
    from scipy.stats import chi2_contingency

    present = expected + found > 0
    distance = np.abs(expected / expected.sum() - found / found.sum()).sum() / 2
    table = np.stack([expected, found])[:, present]
    return float(distance), float(chi2_contingency(table, correction=False).pvalue)


def _limits(answers: Answers, failures: np.ndarray, limits: Monitoring) -> Iterator[Finding]:
    timed = answers.milliseconds[~np.isnan(answers.milliseconds)]
    broken, refused = int((failures >= 500).sum()), int((failures < 500).sum())
    # A refused file of a batch has a line of its own, as an answered one has, so refusals are shares of files.
    requests, files = int(answers.first.sum()) + broken, len(answers) + refused
    counts = (
        ("latency", int((timed > limits.milliseconds).sum()), len(timed), SLOW_SHARE),
        ("errors", broken, requests, limits.error_share),
        ("refusals", refused, files, limits.error_share),
    )
    for cause, count, trials, limit in counts:
        if trials:
            share = count / trials
            yield Finding(cause, cause, share, _more_than(count, trials, limit), limit, share, share > limit)


def _more_than(count: int, trials: int, share: float) -> float:
    """Return the p-value of `count` or more of `trials`, if the share is at most `share`."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, trials, share))


def drifted(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings of drift, those with the smallest p-values first."""
    return sorted((one for one in findings if one.drifted), key=lambda one: one.p)
