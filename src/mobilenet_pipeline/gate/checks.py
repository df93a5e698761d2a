"""The gate's checks on a model, each with a number, a limit and a sentence. Pure."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation.predictions import Predictions
from mobilenet_pipeline.metrics import conformal, paired, scores, spending

VACANT, BETTER, AS_GOOD = REPLACES = ("no champion", "better than the champion", "as good and lighter")
"""Of these champion checks, one has to pass; the others all have to."""

TAKES_PLACE = "as good as the best and lighter"
"""The check of a candidate that passes all others, whether it takes the place of the best such candidate."""

FALSE_BLOCKS = 0.05
"""The chance that the checks on classes and corrupted images block a candidate that loses nothing; each has half."""


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the champion on the same images.

    The counts are of images that only one of them classifies correctly. `p_value` is that of the one-sided test
    that the candidate is better. `lower_bound` is the one-sided (1 − `level`) bound of the difference of accuracies.
    `number` counts the comparisons on these test images, and `level` is the significance level that the error budget
    has for this one; both are None in verdicts from before there was a budget. `milliseconds` per image are of
    candidate and champion, if they were timed in turn. The same holds for two candidates, whose comparison has no
    number.
    """

    only_candidate_right: int
    only_champion_right: int
    p_value: float
    lower_bound: float
    milliseconds: tuple[float, float] | None
    number: int | None = None
    level: float | None = None


@dataclass(frozen=True)
class Check:
    """One check of `candidate`: the measured number, its limit, and a sentence for people."""

    name: str
    candidate: str
    passed: bool
    number: float | None
    limit: float | None
    sentence: str


def own_checks(name: str, predictions: Predictions, limits: config.Gate, preprocessing: str) -> list[Check]:
    """Return the checks that do not depend on the champion."""
    facts, rows = predictions.facts, len(predictions.labels)
    right = int(predictions.right.sum())
    low, high = scores.wilson_interval(right, rows)
    error = scores.expected_calibration_error(predictions.probabilities, predictions.labels)
    megabytes = facts.bytes / 1e6
    check = partial(_check, name)
    coverage = [] if limits.coverage is None else [_coverage(name, predictions, limits.coverage)]
    return [
        check(
            "accuracy",
            low >= limits.accuracy_floor,
            low,
            limits.accuracy_floor,
            f"has {right / rows:.2%} accuracy on {rows:,} test images (95 % interval {low:.2%} to {high:.2%}; the "
            f"lower bound must be at least {limits.accuracy_floor * 100:g} %)",
        ),
        check(
            "calibration",
            error <= limits.calibration_error,
            error,
            limits.calibration_error,
            f"has an expected calibration error of {error * 100:.2f} % (at most {limits.calibration_error * 100:g} %)",
        ),
        *coverage,
        check(
            "size",
            megabytes <= limits.megabytes,
            megabytes,
            limits.megabytes,
            f"has an artefact of {megabytes:.2f} MB (at most {limits.megabytes:g} MB)",
        ),
        check(
            "latency",
            facts.p99_ms <= limits.milliseconds,
            facts.p99_ms,
            limits.milliseconds,
            f"has a p99 latency of {facts.p99_ms:.2f} ms for a single image (at most {limits.milliseconds:g} ms)",
        ),
        check(
            "unseen test images",
            facts.overlap == 0,
            float(facts.overlap),
            0.0,
            f"was trained on {facts.overlap or 'none'} of the test images",
        ),
        check(
            "preprocessing",
            facts.preprocessing == preprocessing,
            float(facts.preprocessing != preprocessing),
            0.0,
            "was trained on images decoded as the service decodes them"
            if facts.preprocessing == preprocessing
            else f"was trained on images decoded by other code than the service's ({facts.preprocessing[:12]}, not "
            f"{preprocessing[:12]})",
        ),
        check(
            "not withdrawn",
            facts.withdrawn is None,
            float(facts.withdrawn is not None),
            0.0,
            "is not withdrawn" if facts.withdrawn is None else f"is withdrawn: {facts.withdrawn}",
        ),
    ]


def _coverage(name: str, predictions: Predictions, stated: float) -> Check:
    """Check that the prediction sets do not contain the class significantly less often than stated.

    Sets that cover more are no fault: those of a model more accurate than `stated` have one class.
    """
    facts, rows = predictions.facts, len(predictions.labels)
    if facts.set_threshold is None:
        text = "was evaluated without prediction sets; evaluate it again"
        return _check(name, "coverage", False, None, stated, text)
    threshold = facts.set_threshold
    right = int(conformal.covered(predictions.probabilities, predictions.labels, threshold).sum())
    low, high = scores.wilson_interval(right, rows)
    least = conformal.least_covered(rows, stated)
    size = conformal.set_sizes(predictions.probabilities, threshold).mean()
    return _check(
        name,
        "coverage",
        right >= least,
        right / rows,
        least / rows,
        f"has prediction sets that contain the class of {right / rows:.2%} of {rows:,} test images (95 % interval "
        f"{low:.2%} to {high:.2%}) with {size:.2f} classes on average; {stated * 100:g} % are stated, so at least "
        f"{least / rows:.2%} are due (one-sided binomial test at 2.5 %)",
    )


def _check(candidate: str, name: str, passed: bool, number: float | None, limit: float | None, text: str) -> Check:
    return Check(name, candidate, bool(passed), number, limit, f"{candidate} {text}.")


def compare(
    candidate: Predictions,
    champion: Predictions,
    budget: float,
    number: int | None,
) -> Comparison:
    """Compare a candidate with the champion by the exact one-sided McNemar test.

    It is comparison `number` of those that share the error `budget` of the test images; without a number its level is
    0, at which nothing is significant.
    """
    return _compare(candidate, champion, spending.level(budget, number) if number else 0.0, number)


def _compare(candidate: Predictions, other: Predictions, level: float, number: int | None = None) -> Comparison:
    both, times = paired.pair(candidate.right, other.right), (candidate.facts.in_turn_ms, other.facts.in_turn_ms)
    return Comparison(
        both.only_candidate,
        both.only_champion,
        paired.p_better(both),
        paired.lower_bound(both, level) if level else -1.0,
        (times[0], times[1]) if times[0] and times[1] else None,
        number,
        level,
    )


def champion_checks(
    winner: str, candidate: Predictions, champion: Predictions, comparison: Comparison, limits: config.Gate
) -> list[Check]:
    """Return the checks that compare a candidate with the champion."""
    return [
        # `decide` refuses anything else; the check says so to the reader.
        _check(
            winner,
            "same test images",
            candidate.data_digest == champion.data_digest,
            float(candidate.data_digest != champion.data_digest),
            0.0,
            f"was scored on the same {len(candidate.labels):,} test images as {_called(champion)}, of data "
            f"{candidate.data_digest[:12]}",
        ),
        _novelty(winner, candidate, champion),
        _improvement(winner, candidate, champion, comparison, limits),
        _classes(winner, candidate, champion, limits),
        _loss(winner, candidate, champion, limits),
        _robustness(winner, candidate, champion, limits),
    ]


def vacancy(winner: str, accuracy: float, unservable: str | None) -> Check:
    """Return the check for when there is no champion; `unservable` is the version of one that cannot be served."""
    text = f"has {accuracy:.2%} test accuracy, and there is no champion to keep"
    if unservable:
        text += f": version {unservable} was trained on images decoded by other code, and cannot be served any more"
    return _check(winner, VACANT, True, None, None, text)


def _changed(candidate: Predictions, champion: Predictions) -> int:
    return int((candidate.probabilities != champion.probabilities).any(axis=1).sum())


def _novelty(winner: str, candidate: Predictions, champion: Predictions) -> Check:
    changed = _changed(candidate, champion)
    text = f"differs from {_called(champion)} in its probabilities for {changed:,} test images"
    if not changed:
        text = f"is {_called(champion)} itself: it gives the same probabilities for every test image"
    return _check(winner, "new model", changed > 0, float(changed), 1.0, text)


def _improvement(
    winner: str, candidate: Predictions, champion: Predictions, comparison: Comparison, limits: config.Gate
) -> Check:
    level, number = comparison.level or 0.0, comparison.number or 0
    better = comparison.p_value < level
    where = f" in comparison {number:,} on these test images" if number else ""
    rule = limits.as_good_and_lighter
    text = (
        f"alone classifies {comparison.only_candidate_right:,} test images correctly, {_called(champion)} alone "
        f"{comparison.only_champion_right:,}: {'a' if better else 'no'} significant gain (exact one-sided McNemar "
        f"test, p {_small(comparison.p_value)}, must be below {level:.2g}{where})"
    )
    if better or rule is None:
        return _check(winner, BETTER, better, comparison.p_value, level, text)
    passes, sentence = _is_as_good_and_lighter(candidate, champion, comparison, rule)
    text += f"; the recipe also accepts as good and lighter: {sentence}"
    return _check(winner, AS_GOOD, passes, comparison.lower_bound, -rule.margin, text)


def _is_as_good_and_lighter(
    candidate: Predictions, other: Predictions, comparison: Comparison, rule: config.Lighter
) -> tuple[bool, str]:
    """Return whether the candidate is not inferior and saves enough, and a part of a sentence with the numbers."""
    gain = comparison.only_candidate_right - comparison.only_champion_right
    saving, timed = 1 - candidate.facts.bytes / other.facts.bytes, "the two were not timed in turn"
    if comparison.milliseconds:
        ours, theirs = comparison.milliseconds
        saving = max(saving, 1 - ours / theirs)
        timed = f"timed in turn, it needs {ours:.3f} ms per image and {_called(other)} {theirs:.3f} ms"
    sentence = (
        f"the accuracy differs by {gain / len(candidate.labels) * 100:+.2f} percentage points, one-sided bound at the "
        f"level {comparison.level:.2g} {comparison.lower_bound * 100:+.2f} (must be above {-rule.margin * 100:+g}); "
        f"{timed}; it saves {saving:.0%} of size or time (at least {rule.saving:.0%})"
    )
    return comparison.lower_bound > -rule.margin and saving >= rule.saving, sentence


def replaces_best(name: str, candidate: Predictions, best: Predictions, limits: config.Gate, level: float) -> Check:
    """Return the check whether `candidate` takes the place of the `best` one, which is called `best.name`.

    Its accuracy must not be inferior at `level`, it must save as much as the limits ask for, and no class, the loss or
    the corrupted images may be worse than the limits allow.
    """
    rule = limits.as_good_and_lighter
    if rule is None:
        raise ValueError("the limits accept no candidate as good and lighter")
    comparison = _compare(candidate, best, level)
    passes, sentence = _is_as_good_and_lighter(candidate, best, comparison, rule)
    text = f"{'is' if passes else 'is not'} as good as {best.name} and lighter: {sentence}"
    worse = [
        check
        for check in (
            _classes(name, candidate, best, limits),
            _loss(name, candidate, best, limits),
            _robustness(name, candidate, best, limits),
        )
        if not check.passed
    ]
    if passes and worse:
        text = worse[0].sentence.removeprefix(f"{name} ").removesuffix(".")
    return _check(name, TAKES_PLACE, passes and not worse, comparison.lower_bound, -rule.margin, text)


def _classes(winner: str, candidate: Predictions, champion: Predictions, limits: config.Gate) -> Check:
    pairs = paired.pairs_by_group(candidate.right, champion.right, candidate.labels)
    p_values = paired.holm([paired.p_worse(pair) for pair in pairs.values()])
    worse = [
        (pair.difference, label, p)
        for (label, pair), p in zip(pairs.items(), p_values, strict=True)
        if pair.difference < -limits.recall_drop and p < FALSE_BLOCKS / 2
    ]
    lowest = min(pair.difference for pair in pairs.values())
    if worse:
        drop, label, p = min(worse)
        text = (
            f"loses {-drop * 100:.1f} percentage points on class {label} compared with {_called(champion)}: "
            f"significant, and more than {limits.recall_drop * 100:g} (one-sided McNemar test, Holm-adjusted p "
            f"{_small(p)})"
        )
    else:
        text = (
            f"loses at most {max(0.0, -lowest) * 100:.1f} percentage points on any class compared with "
            f"{_called(champion)} (a significant loss of more than {limits.recall_drop * 100:g} blocks it; of "
            f"{len(pairs):,} classes, {_noticed(candidate.labels, len(pairs))})"
        )
    return _check(winner, "no class much worse", not worse, lowest, -limits.recall_drop, text)


def _noticed(labels: np.ndarray, classes: int) -> str:
    """Return what a test of so many classes can notice at all: the least number of images that a class must lose.

    With no image gained, `n` lost ones have the p-value ½ⁿ, which Holm's first step multiplies by the classes.
    """
    least = math.floor(math.log2(classes / (FALSE_BLOCKS / 2))) + 1
    counts = np.unique(labels, return_counts=True)[1]
    text = f"one must lose at least {least} images to be noticed, and the smallest has {counts.min():,}"
    blind = int((counts < least).sum())
    return f"{text}: {blind:,} are too small to be noticed" if blind else text


def _loss(winner: str, candidate: Predictions, champion: Predictions, limits: config.Gate) -> Check:
    difference = accuracy_and_loss(candidate)[1] - accuracy_and_loss(champion)[1]
    text = f"has a loss that differs from {_called(champion)}'s by {difference:+.4f} (at most +{limits.loss_margin:g})"
    return _check(winner, "loss", difference <= limits.loss_margin, difference, limits.loss_margin, text)


def _robustness(winner: str, candidate: Predictions, champion: Predictions, limits: config.Gate) -> Check:
    """Check that corruptions do not harm the candidate more than the champion, significantly and beyond the limit.

    Per image, the share of corruptions under which each model is correct differs; the mean of these differences has a
    standard error. The check blocks a loss that exceeds the limit and is significant (one-sided, 2.5 %), so at most 25
    in 1,000 equally robust candidates are blocked, however few the images. Two trainings of `digits` differ with a
    standard deviation of 14 percentage points per image: on its 360 images, chance alone reaches 1.25. Requiring proof
    that no more than the limit of 1 is lost would block 6 in 10 equally robust candidates. Requiring proof that more
    than the limit is lost would let half of those pass that lose 2.25.
    """
    ours, theirs = candidate.facts.corrupted, champion.facts.corrupted
    lost = {name: np.asarray(theirs[name], float) - np.asarray(ours[name], float) for name in ours}
    each = np.mean(list(lost.values()), axis=0)
    drop, least, limit = float(np.mean(each)), paired.mean_lower_bound(each, FALSE_BLOCKS / 2), limits.corruption_drop
    worst = max(lost, key=lambda name: float(np.mean(lost[name])))
    text = (
        f"differs from {_called(champion)} by {0 - drop * 100:+.2f} percentage points on {each.size:,} corrupted "
        f"images (one-sided 97.5 % bound {0 - least * 100:+.2f}; a significant loss of more than {limit * 100:g} "
        f"blocks it); its worst corruption is {worst}, {0 - np.mean(lost[worst]) * 100:+.1f}"
    )
    return _check(winner, "corrupted images", not (drop > limit and least > 0), drop, limit, text)


def _small(p_value: float) -> str:
    """Return `= p`, or a bound for a p-value that is too small for a float."""
    return f"= {p_value:.2g}" if p_value else "< 1e-300"


def _called(champion: Predictions) -> str:
    return champion.name if champion.version is None else f"the champion (version {champion.version})"


def accuracy_and_loss(predictions: Predictions) -> tuple[float, float]:
    """Return accuracy, a share, and cross-entropy per image."""
    loss = scores.cross_entropy(predictions.probabilities, predictions.labels)
    return float(predictions.right.mean()), loss


def class_names(predictions: Predictions) -> list[str]:
    """Return numbers as names: no check depends on the classes' names."""
    return [str(index) for index in range(predictions.probabilities.shape[-1])]
