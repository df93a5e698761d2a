"""Whether a candidate may take the champion's place. Pure: predictions in, verdict out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from mobilenet_pipeline import config, metrics
from mobilenet_pipeline.checks import (
    REPLACES,
    Check,
    Comparison,
    Predictions,
    class_names,
    compare,
    hurdles,
    own_checks,
    same,
    scores,
    vacancy,
)

MANY_READS = 20
"""From here on the verdict warns: each comparison on the same images is one more chance to win by luck."""


class GateError(ValueError):
    """The predictions cannot be compared, so nothing may be promoted."""


@dataclass(frozen=True)
class Standing:
    """A candidate by itself: `low` and `high` bound the accuracy with 95 % (Wilson); `eligible` if it passes all limits
    that do not depend on the champion."""

    accuracy: float
    low: float
    high: float
    loss: float
    calibration_error: float
    eligible: bool


@dataclass(frozen=True)
class Champion:
    """The model that is served now."""

    version: str | None
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Verdict:
    """The gate's decision with every number behind it.

    `winner` is the candidate that is promoted, or the best that is not; None where none is eligible. `comparison` is
    the winner's.

    `test_reads` is how often models were scored on these test images so far; `warning` says so where it is often.
    """

    promote: bool
    winner: str | None
    reason: str
    candidates: dict[str, Standing]
    champion: Champion | None
    comparison: Comparison | None
    checks: list[Check]
    data_digest: str
    test_rows: int
    test_reads: int
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        """The verdict as one JSON document."""
        return asdict(self)


def decide(
    candidates: Mapping[str, Predictions],
    champion: Predictions | None,
    limits: config.Gate,
    preprocessing: str,
    test_reads: int,
    timings: Mapping[str, tuple[float, float]] | None = None,
    unservable: str | None = None,
) -> Verdict:
    """Decide whether a candidate is promoted, and which.

    Out is a candidate that misses a limit of its own: accuracy, calibration, size, latency, integrity. Without a
    champion, the best of the others is promoted (highest accuracy, then lowest loss, then the order of
    `config.CANDIDATES`). With one, it is the best of those that hold against it on the same test images: better, or
    where the limits say so as good and lighter; no class much worse; probabilities and corrupted images as good.

    `preprocessing` is the fingerprint of the code that would decode images in the service. `timings` are the
    milliseconds that one image takes a candidate and the champion, where they were timed side by side: only such times
    count as lighter. `unservable` is the number of the champion where it is left out for being decoded otherwise.

    Raises GateError where predictions are missing, are not probabilities, or are not of the same test images.
    """
    _check_comparable(candidates, champion)
    own = {name: own_checks(name, candidates[name], limits, preprocessing) for name in config.CANDIDATES}
    standings = {name: _standing(candidates[name], own[name]) for name in config.CANDIDATES}
    ranking = _ranking(standings)
    if champion is None:
        comparisons = {}
        beside = {name: [vacancy(name, standings[name].accuracy, unservable)] for name in ranking[:1]}
    else:
        rivals = sum(not same(candidates[name], champion) for name in ranking)
        times = timings or {}
        comparisons = {name: compare(candidates[name], champion, max(1, rivals), times.get(name)) for name in ranking}
        beside = {name: hurdles(name, candidates[name], champion, comparisons[name], limits) for name in ranking}
    passing = [name for name in beside if all(check.passed for check in beside[name])]
    winner = next(iter([*passing, *ranking]), None)
    reference = candidates[config.CANDIDATES[0]]
    return Verdict(
        promote=bool(passing),
        winner=winner,
        reason=_reason(winner, bool(passing), own, beside),
        candidates=standings,
        champion=None if champion is None else _champion(champion),
        comparison=comparisons.get(winner) if winner else None,
        checks=[*chain.from_iterable(own.values()), *chain.from_iterable(beside.values())],
        data_digest=reference.data_digest,
        test_rows=len(reference.labels),
        test_reads=test_reads,
        warning=_warning(test_reads),
    )


def _warning(reads: int) -> str | None:
    if reads < MANY_READS:
        return None
    return (
        f"These test images have been read {reads} times. With every read, the best figure owes more to chance: "
        "collect new test images before the next decisions."
    )


def _check_comparable(candidates: Mapping[str, Predictions], champion: Predictions | None) -> None:
    for name in config.CANDIDATES:
        if candidates.get(name) is None:
            raise GateError(f"there are no predictions of candidate {name}; evaluate it first")
    unknown = set(candidates) - set(config.CANDIDATES)
    if unknown:
        raise GateError(f"unknown candidates {sorted(unknown)}; there are: {', '.join(config.CANDIDATES)}")
    reference = candidates[config.CANDIDATES[0]]
    named = {**candidates, "the champion": champion} if champion is not None else dict(candidates)
    for name, predictions in named.items():
        _check_one(name, predictions, reference)


def _check_one(name: str, predictions: Predictions, reference: Predictions) -> None:
    first = config.CANDIDATES[0]
    if not predictions.data_digest or predictions.data_digest != reference.data_digest:
        raise GateError(
            f"predictions of {name} are of data {predictions.data_digest or 'without a digest'}, those of {first} of "
            f"{reference.data_digest}; evaluate {name} again on the current data"
        )
    try:
        metrics.check(predictions.probabilities, predictions.labels, class_names(predictions))
    except ValueError as error:
        raise GateError(f"predictions of {name} cannot be scored: {error}") from None
    if predictions.probabilities.shape != reference.probabilities.shape:
        raise GateError(
            f"predictions of {name} are {predictions.probabilities.shape}, those of {first} "
            f"{reference.probabilities.shape} (images, classes); evaluate both on the same test images"
        )
    if not np.array_equal(predictions.labels, reference.labels):
        raise GateError(f"predictions of {name} have other labels than those of {first}; evaluate both again")
    corrupted = predictions.facts.corrupted
    if not corrupted or corrupted.keys() != reference.facts.corrupted.keys():
        raise GateError(f"{name} was not measured on the corruptions that {first} was; evaluate both again")
    if {np.shape(right) for right in corrupted.values()} != set(map(np.shape, reference.facts.corrupted.values())):
        raise GateError(f"{name} was not measured on the corrupted images that {first} was; evaluate both again")


def _standing(predictions: Predictions, checks: list[Check]) -> Standing:
    accuracy, loss = scores(predictions)
    low, high = metrics.wilson_interval(int(predictions.right.sum()), len(predictions.labels))
    error = next(check.number for check in checks if check.name == "calibration") or 0.0
    return Standing(accuracy, low, high, loss, error, all(check.passed for check in checks))


def _champion(predictions: Predictions) -> Champion:
    return Champion(predictions.version, *scores(predictions))


def _ranking(standings: Mapping[str, Standing]) -> list[str]:
    """The eligible candidates, the best first; sorting leaves equals in the order of config.CANDIDATES."""
    eligible = [name for name, standing in standings.items() if standing.eligible]
    return sorted(eligible, key=lambda name: (-standings[name].accuracy, standings[name].loss))


def _reason(
    winner: str | None, promote: bool, own: Mapping[str, list[Check]], beside: Mapping[str, list[Check]]
) -> str:
    """Why, in sentences: what speaks for the winner, and the first thing that speaks against each other candidate."""
    against = {
        name: next((check.sentence for check in [*own[name], *beside.get(name, [])] if not check.passed), "")
        for name in own
    }
    others = "".join(f" {sentence}" for name, sentence in against.items() if name != winner and sentence)
    if winner is None:
        return f"Nothing is promoted:{others}"
    if not promote:
        return f"The champion stays, {winner} is not promoted: {against[winner]}{others}"
    why = next(check.sentence for check in beside[winner] if check.name in REPLACES)
    return f"{winner} is promoted: {why}{others}"
