"""Whether a candidate replaces the champion. Pure: predictions in, verdict out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation.predictions import Predictions
from mobilenet_pipeline.gate.checks import (
    REPLACES,
    Check,
    Comparison,
    accuracy_and_loss,
    champion_checks,
    class_names,
    compare,
    own_checks,
    replaces_best,
    vacancy,
)
from mobilenet_pipeline.metrics import scores, spending


class GateError(ValueError):
    """The predictions cannot be compared, so nothing may be promoted."""


@dataclass(frozen=True)
class Usage:
    """How the test images were used so far, from the records.

    `reads` counts the scorings of models on them. `numbers` has, by candidate, the number of its comparison with the
    champion among all comparisons on these images; a candidate without a number cannot be better. `last` is the highest
    number so far.
    """

    reads: int
    numbers: Mapping[str, int]
    last: int


@dataclass(frozen=True)
class Standing:
    """A candidate by itself.

    `low` and `high` are the 95 % Wilson bounds of the accuracy. `eligible`: it passes every check that does not depend
    on the champion.
    """

    accuracy: float
    low: float
    high: float
    loss: float
    calibration_error: float
    eligible: bool


@dataclass(frozen=True)
class Champion:
    """The model that is served before the verdict, on the same test images."""

    version: str | None
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Aliases:
    """The numbers of the versions that carry the aliases `champion` and `challenger`."""

    champion: str | None
    challenger: str | None


class Decision(BaseModel):
    """The gate's decision with every number behind it.

    `winner` is the candidate to promote, or the best of those that are not promoted; None if none is eligible.
    `comparison` is the winner's. `test_reads` counts how often models were scored on these test images so far.
    `budget_left` is the share of the test images' error budget, `limits.significance`, that is left; None in verdicts
    from before there was a budget. `warning` is set if half of it is spent.
    """

    model_config = ConfigDict(frozen=True)

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
    budget_left: float | None = None


class Verdict(Decision):
    """A decision on registered versions: the content of `reports/RECIPE/verdict.json`.

    `versions` and `artefacts` (SHA-256) are the candidates', `preprocessing` is the fingerprint of the service's
    decoder, `against` the champion's version. `champion_measured_again`: the champion was evaluated for this verdict.
    `leaves` are the aliases once the verdict is applied; `judged_at` is an ISO 8601 time.
    """

    recipe: str
    registered_model: str
    limits: config.Gate
    versions: dict[str, str]
    artefacts: dict[str, str]
    preprocessing: str
    against: str | None
    champion_measured_again: bool
    waits_for_approval: bool
    leaves: Aliases
    judged_at: str

    @field_validator("limits", mode="before")
    @classmethod
    def _of_an_earlier_release(cls, limits: Any) -> Any:
        """Complete the limits of verdicts from before there were prediction sets."""
        return {"coverage": None, **limits} if isinstance(limits, dict) else limits

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read a verdict.json called `source`. Raises GateError if the text is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise GateError(
                f"{source} is not a verdict of this version ({where}: {fault['msg']}); run the recipe again"
            ) from None

    def to_json(self) -> str:
        """Return verdict.json; the same verdict gives the same text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def promotes(self, candidate: str) -> bool:
        """Return whether the verdict promotes this candidate."""
        return self.promote and self.winner == candidate


def decide(
    candidates: Mapping[str, Predictions],
    champion: Predictions | None,
    limits: config.Gate,
    preprocessing: str,
    usage: Usage,
    unservable: str | None = None,
) -> Decision:
    """Decide which candidate is promoted, if any.

    A candidate that fails one of its own checks is out: accuracy, calibration, coverage, size, latency, integrity.
    Without a champion, the best is promoted (highest accuracy, then lowest loss, then the order of `candidates`).
    With a champion, the best candidate that passes every champion check is promoted: better, or as good and lighter if
    the limits allow it; no class much worse; loss and accuracy on corrupted images as good. If the limits allow it,
    another candidate that passes takes the place of the best one: the lightest of those that are as good in all this.

    `preprocessing` is the fingerprint of the service's decoder. `usage` says how the test images were used before, from
    which follows the significance level of each comparison. `unservable` is the version of a champion that is left out
    because the service decodes images differently from its training.

    Raises GateError if predictions are missing, are not probabilities, or are not of the same test images.
    """
    _check_comparable(candidates, champion)
    own = {name: own_checks(name, it, limits, preprocessing) for name, it in candidates.items()}
    standings = {name: _standing(it, own[name]) for name, it in candidates.items()}
    ranking = _ranking(standings)
    if champion is None:
        comparisons = {}
        beside = {name: [vacancy(name, standings[name].accuracy, unservable)] for name in ranking[:1]}
    else:
        comparisons = {
            name: compare(candidates[name], champion, limits.significance, usage.numbers.get(name)) for name in ranking
        }
        beside = {
            name: champion_checks(name, candidates[name], champion, comparisons[name], limits) for name in ranking
        }
    passing = [name for name in ranking if all(check.passed for check in beside.get(name, []))]
    best = next(iter([*passing, *ranking]), None)
    lighter = _lighter(passing, candidates, limits)
    winner = next((check.candidate for check in lighter if check.passed), best)
    reference = next(iter(candidates.values()))
    budget_left = spending.left(usage.last)
    return Decision(
        promote=bool(passing),
        winner=winner,
        reason=_reason(winner, best, bool(passing), own, beside, lighter),
        candidates=standings,
        champion=None if champion is None else _champion(champion),
        comparison=comparisons.get(winner) if winner else None,
        checks=[*chain.from_iterable(own.values()), *chain.from_iterable(beside.values()), *lighter],
        data_digest=reference.data_digest,
        test_rows=len(reference.labels),
        test_reads=usage.reads,
        warning=_warning(usage.last, budget_left),
        budget_left=budget_left,
    )


def _lighter(passing: list[str], candidates: Mapping[str, Predictions], limits: config.Gate) -> list[Check]:
    """Return a check of each lighter candidate that passes, whether it takes the place of the best; the lightest first.

    The comparisons share the level `limits.significance` equally (Bonferroni).
    """
    if limits.as_good_and_lighter is None or len(passing) < 2:
        return []
    best, *others = passing
    reference = replace(candidates[best], version=None, name=best)
    lighter = sorted(
        (name for name in others if candidates[name].facts.bytes < reference.facts.bytes),
        key=lambda name: candidates[name].facts.bytes,
    )
    return [
        replaces_best(name, candidates[name], reference, limits, limits.significance / len(lighter)) for name in lighter
    ]


def _warning(comparisons: int, left: float) -> str | None:
    if left > 0.5:
        return None
    return (
        f"After {comparisons:,} comparisons on these test images, {left:.0%} of their error budget is left, and "
        "only large gains are significant: collect new test images, which have a budget of their own."
    )


def _check_comparable(candidates: Mapping[str, Predictions], champion: Predictions | None) -> None:
    if not candidates:
        raise GateError("there are no candidates to compare")
    first = next(iter(candidates))
    named = {**candidates, "the champion": champion} if champion is not None else candidates
    for name, predictions in named.items():
        _check_one(name, predictions, first, candidates[first])


def _check_one(name: str, predictions: Predictions, first: str, reference: Predictions) -> None:
    if not predictions.data_digest or predictions.data_digest != reference.data_digest:
        raise GateError(
            f"predictions of {name} are of data {predictions.data_digest or 'without a digest'}, those of {first} of "
            f"{reference.data_digest}; evaluate {name} again on the current data"
        )
    try:
        scores.check(predictions.probabilities, predictions.labels, class_names(predictions))
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
    accuracy, loss = accuracy_and_loss(predictions)
    low, high = scores.wilson_interval(int(predictions.right.sum()), len(predictions.labels))
    error = next(check.number for check in checks if check.name == "calibration") or 0.0
    return Standing(accuracy, low, high, loss, error, all(check.passed for check in checks))


def _champion(predictions: Predictions) -> Champion:
    return Champion(predictions.version, *accuracy_and_loss(predictions))


def _ranking(standings: Mapping[str, Standing]) -> list[str]:
    """Return the eligible candidates, the best first; equals stay in their order."""
    eligible = [name for name, standing in standings.items() if standing.eligible]
    return sorted(eligible, key=lambda name: (-standings[name].accuracy, standings[name].loss))


def _reason(
    winner: str | None,
    best: str | None,
    promote: bool,
    own: Mapping[str, list[Check]],
    beside: Mapping[str, list[Check]],
    lighter: list[Check],
) -> str:
    """Return the reason in sentences: why the winner wins, and the first failed check of each other candidate."""
    against = {
        name: next((check.sentence for check in [*own[name], *beside.get(name, [])] if not check.passed), "")
        for name in own
    }
    others = "".join(f" {sentence}" for name, sentence in against.items() if name != winner and sentence)
    if winner is None:
        return f"Nothing is promoted:{others}"
    if not promote:
        return f"The champion stays, {winner} is not promoted: {against[winner]}{others}"
    why = next(check.sentence for check in beside[best or winner] if check.name in REPLACES)
    if winner != best:
        place = next(check.sentence for check in lighter if check.candidate == winner)
        return f"{winner} is promoted in place of {best}: {why} {place}{others}"
    return f"{winner} is promoted: {why}{others}"
