"""Whether a candidate may take the champion's place. Pure: predictions in, verdict out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mobilenet_pipeline import config, metrics


class GateError(ValueError):
    """The predictions cannot be compared, so nothing may be promoted."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model said about the test images.

    `probabilities` (n, k), `labels` (n,) integers, `data_digest` of the dataset that the images are of, and the
    registered `version` of the model where it has one.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    data_digest: str
    version: str | None = None

    @property
    def right(self) -> np.ndarray:
        """Which images (n,) the model classified correctly."""
        return np.argmax(self.probabilities, axis=1) == self.labels


@dataclass(frozen=True)
class Standing:
    """A candidate against the accuracy floor."""

    accuracy: float
    loss: float
    floor: float
    passes_floor: bool
    sentence: str


@dataclass(frozen=True)
class Champion:
    """The model that is served now."""

    version: str | None
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """The winner against the champion: the images that only one of them gets right, and the one-sided p-value."""

    only_candidate_right: int
    only_champion_right: int
    p_value: float
    significance: float


@dataclass(frozen=True)
class Check:
    """One condition: the number found, the limit it was held against, and a sentence for people."""

    name: str
    passed: bool
    number: float | None
    limit: float | None
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The gate's decision with every number behind it. `winner` is None where no candidate passes the floor."""

    promote: bool
    winner: str | None
    reason: str
    candidates: dict[str, Standing]
    champion: Champion | None
    comparison: Comparison | None
    checks: list[Check]
    data_digest: str
    test_rows: int

    def to_dict(self) -> dict[str, Any]:
        """The verdict as one JSON document."""
        return asdict(self)


def decide(candidates: Mapping[str, Predictions], champion: Predictions | None, limits: config.Gate) -> Verdict:
    """Decide whether the best candidate is promoted.

    A candidate below the accuracy floor is out; the best of those that pass goes on (highest accuracy, then lowest
    loss, then the order of `config.CANDIDATES`). It is promoted if there is no champion, or if it beats the champion
    on the same test images by a one-sided exact McNemar test with p < significance.

    Raises GateError where predictions are missing, are not probabilities, or are not of the same test images.
    """
    _check_comparable(candidates, champion)
    standings = {name: _standing(name, candidates[name], limits.accuracy_floor) for name in config.CANDIDATES}
    winner = _best(standings)
    comparison, hurdles = None, []
    if winner is not None and champion is not None:
        comparison = compare(candidates[winner], champion, limits.significance)
        hurdles = [_novelty(winner, candidates[winner], champion), _improvement(winner, champion, comparison)]
    elif winner is not None:
        hurdles = [_vacancy(winner, standings[winner])]
    reference = candidates[config.CANDIDATES[0]]
    return Verdict(
        promote=winner is not None and all(check.passed for check in hurdles),
        winner=winner,
        reason=_reason(winner, standings, hurdles),
        candidates=standings,
        champion=None if champion is None else Champion(champion.version, float(champion.right.mean())),
        comparison=comparison,
        checks=[_floor(name, standing) for name, standing in standings.items()] + hurdles,
        data_digest=reference.data_digest,
        test_rows=len(reference.labels),
    )


def compare(candidate: Predictions, champion: Predictions, significance: float) -> Comparison:
    """Test whether `candidate` is better than `champion`, exactly and one-sided, on the images where they differ."""
    from scipy.stats import binomtest

    only_candidate = int((candidate.right & ~champion.right).sum())
    only_champion = int((champion.right & ~candidate.right).sum())
    discordant = only_candidate + only_champion
    p_value = binomtest(only_candidate, discordant, 0.5, alternative="greater").pvalue if discordant else 1.0
    return Comparison(only_candidate, only_champion, float(p_value), significance)


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
        metrics.check(predictions.probabilities, predictions.labels, _class_names(predictions))
    except ValueError as error:
        raise GateError(f"predictions of {name} cannot be scored: {error}") from None
    if predictions.probabilities.shape != reference.probabilities.shape:
        raise GateError(
            f"predictions of {name} are {predictions.probabilities.shape}, those of {first} "
            f"{reference.probabilities.shape} (images, classes); evaluate both on the same test images"
        )
    if not np.array_equal(predictions.labels, reference.labels):
        raise GateError(f"predictions of {name} have other labels than those of {first}; evaluate both again")


def _class_names(predictions: Predictions) -> list[str]:
    return [str(index) for index in range(predictions.probabilities.shape[-1])]


def _standing(name: str, predictions: Predictions, floor: float) -> Standing:
    found = metrics.evaluate(predictions.probabilities, predictions.labels, _class_names(predictions))
    passes = found["accuracy"] >= floor
    sentence = (
        f"{name} classifies {found['accuracy']:.2%} of {found['rows']:,} test images correctly, "
        f"{'which passes' if passes else 'below'} the floor of {floor * 100:g}%."
    )
    return Standing(found["accuracy"], found["loss"], floor, passes, sentence)


def _best(standings: Mapping[str, Standing]) -> str | None:
    passing = [name for name, standing in standings.items() if standing.passes_floor]
    # `min` keeps the first of equals, and the standings are in the order of config.CANDIDATES.
    return min(passing, key=lambda name: (-standings[name].accuracy, standings[name].loss), default=None)


def _floor(name: str, standing: Standing) -> Check:
    return Check(f"{name} accuracy", standing.passes_floor, standing.accuracy, standing.floor, standing.sentence)


def _vacancy(winner: str, standing: Standing) -> Check:
    sentence = f"{winner} classifies {standing.accuracy:.2%} of the test images correctly and there is no champion yet."
    return Check("no champion", True, None, None, sentence)


def _novelty(winner: str, candidate: Predictions, champion: Predictions) -> Check:
    changed = int((candidate.probabilities != champion.probabilities).any(axis=1).sum())
    sentence = f"{winner} and {_called(champion)} give different probabilities for {changed:,} test images."
    if not changed:
        sentence = f"{winner} is {_called(champion)} itself, with the same probabilities for every test image."
    return Check("new model", changed > 0, float(changed), 1.0, sentence)


def _improvement(winner: str, champion: Predictions, comparison: Comparison) -> Check:
    better = comparison.p_value < comparison.significance
    sentence = (
        f"{comparison.only_candidate_right:,} test images are classified correctly by {winner} only and "
        f"{comparison.only_champion_right:,} by {_called(champion)} only, "
        f"{'a' if better else 'not a'} significant gain (one-sided exact McNemar test, "
        f"p {_small(comparison.p_value)}, needed: below {comparison.significance:g})."
    )
    return Check("better than champion", better, comparison.p_value, comparison.significance, sentence)


def _small(p_value: float) -> str:
    """A p-value too small for a float is not zero."""
    return f"= {p_value:.2g}" if p_value else "< 1e-300"


def _called(champion: Predictions) -> str:
    return "the champion" if champion.version is None else f"the champion (version {champion.version})"


def _reason(winner: str | None, standings: Mapping[str, Standing], hurdles: list[Check]) -> str:
    below = [f"{name} is at {entry.accuracy:.2%}" for name, entry in standings.items() if not entry.passes_floor]
    out = f"{' and '.join(below)}, below the floor of {next(iter(standings.values())).floor * 100:g}%"
    if winner is None:
        return f"Nothing is promoted: {out}."
    aside = f" ({out})" if below else ""
    failed = [check for check in hurdles if not check.passed]
    if failed:
        return f"The champion stays, {winner} is not promoted{aside}: {failed[0].sentence}"
    return f"{winner} is promoted{aside}: {hurdles[-1].sentence}"
