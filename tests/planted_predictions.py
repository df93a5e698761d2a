"""Predictions of made-up models whose accuracy, confidence and facts are planted, and verdicts on them."""

from dataclasses import replace
from typing import Any

import numpy as np

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation.predictions import Facts, Predictions
from mobilenet_pipeline.gate import verdict
from mobilenet_pipeline.gate.checks import Check
from mobilenet_pipeline.gate.verdict import Aliases, Decision, Usage, Verdict

LIMITS = config.Gate(
    accuracy_floor=0.6,
    calibration_error=1.0,
    megabytes=10,
    milliseconds=5,
    significance=0.05,
    as_good_and_lighter=None,
    recall_drop=0.03,
    loss_margin=0.01,
    corruption_drop=0.01,
    coverage=0.95,
)
FREE = LIMITS.model_copy(update={"loss_margin": 1.0})
"""Limits that leave the decision to the comparison of accuracies and classes."""
LIGHTER = LIMITS.model_copy(update={"as_good_and_lighter": config.Lighter(margin=0.003, saving=0.2)})
ROBUST = {"noise 1": np.arange(200) < 120, "blur 1": np.arange(200) < 100}
FACTS = Facts(ROBUST, 1_000_000, 1.0, 2.0, "p1", 0, set_threshold=0.0)
"""Every class is in the prediction sets: they cover everything."""


def facts(**changes: object) -> Facts:
    return replace(FACTS, **changes)


def answers(right: np.ndarray, sure: float = 0.8, **changes: object) -> Predictions:
    """Return predictions that are right where `right` (n,) is True, with probability `sure` for the answer given."""
    labels = (np.arange(len(right)) % 10).astype(np.uint8)
    answer = np.where(right, labels, (labels + 1) % 10)
    probabilities = np.full((len(right), 10), (1 - sure) / 9, np.float32)
    probabilities[np.arange(len(right)), answer] = sure
    values = {"labels": labels, "data_digest": "d1", "facts": FACTS, "version": None, **changes}
    return Predictions(probabilities, **values)


def accurate(count: int, **changes: object) -> Predictions:
    """Return predictions that are right on the first `count` of 200 images."""
    return answers(np.arange(200) < count, **changes)


def drawn(rng: np.random.Generator, rows: int, shared: float, *rates: float) -> list[np.ndarray]:
    """Return models right at these rates, whose answers are the same draw for a share of the images."""
    common, same = rng.random(rows), rng.random(rows) < shared
    return [np.where(same, common, rng.random(rows)) < rate for rate in rates]


def decide(
    scratch: Predictions,
    pretrained: Predictions,
    champion: Predictions | None,
    limits: config.Gate = LIMITS,
    comparisons: int = 0,
) -> Decision:
    """Return the decision after so many earlier comparisons on these test images."""
    return verdict.decide({"scratch": scratch, "pretrained": pretrained}, champion, limits, "p1", usage(comparisons))


def usage(comparisons: int = 0) -> Usage:
    """Return how the test images were used, after so many earlier comparisons."""
    numbers = {"scratch": comparisons + 1, "pretrained": comparisons + 2}
    return Usage(reads=comparisons + 2, numbers=numbers, last=comparisons + 2)


def failed(decision: Decision) -> list[tuple[str, str]]:
    """Return candidate and name of every failed check."""
    return [(check.candidate, check.name) for check in decision.checks if not check.passed]


def check_of(decision: Decision, candidate: str, name: str) -> Check:
    return next(check for check in decision.checks if (check.candidate, check.name) == (candidate, name))


def verdict_on(decision: Decision, **changes: Any) -> Verdict:
    """Return the verdict with this decision on registered versions 1 and 2."""
    values = {
        "recipe": "digits",
        "registered_model": "digits-mobilenet",
        "limits": LIMITS,
        "versions": {"scratch": "1", "pretrained": "2"},
        "artefacts": {"scratch": "a" * 64, "pretrained": "b" * 64},
        "preprocessing": "p1",
        "against": None,
        "champion_measured_again": False,
        "waits_for_approval": False,
        "leaves": Aliases(None, None),
        "judged_at": "2026-01-01T00:00:00+00:00",
    }
    return Verdict(**(dict(decision) | values | changes))
