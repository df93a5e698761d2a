"""Which windows have drifted: an effect must be large and significant."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.monitoring.answers import Answers
from mobilenet_pipeline.monitoring.comparisons import Finding, compare, drifted, mix_of, ratios_of

NONE = np.zeros(0, int)
Answered = Callable[..., Answers]


def found(
    answers: Answers, reference: Reference, limits: Monitoring, failures: np.ndarray = NONE
) -> dict[str, Finding]:
    return {finding.test: finding for finding in drifted(compare(answers, failures, reference, limits))}


@pytest.mark.parametrize("count", [20, 1000, 100_000])
def test_the_same_images_have_not_drifted(
    answered: Answered, reference: Reference, limits: Monitoring, count: int
) -> None:
    assert found(answered(count), reference, limits) == {}


@pytest.mark.parametrize("count", [1000, 10_000, 200_000])
def test_a_shift_of_a_fiftieth_of_the_deviation_is_never_drift(
    answered: Answered, reference: Reference, limits: Monitoring, count: int
) -> None:
    assert "brightness" not in found(answered(count, brightness=0.02), reference, limits)


@pytest.mark.parametrize("count", [20, 1000, 100_000])
def test_a_shift_of_two_deviations_is_drift_of_images(
    answered: Answered, reference: Reference, limits: Monitoring, count: int
) -> None:
    finding = found(answered(count, brightness=2), reference, limits)["brightness"]
    assert finding.cause == "images"
    assert finding.sentence.startswith("brightness is 1")


@pytest.mark.parametrize("rows", [1000, 10_000, 100_000])
@pytest.mark.parametrize("count", [2000, 20_000, 200_000])
def test_a_class_at_half_its_share_is_drift_at_every_sample_size(
    reference: Reference, answered: Answered, limits: Monitoring, rows: int, count: int
) -> None:
    shares = np.r_[0.05, np.full(9, 0.95 / 9)]
    ten = replace(reference, class_names=list("abcdefghij"), predicted=np.arange(rows) % 10)
    predicted = np.repeat(np.arange(10), np.round(shares * count).astype(int))
    assert "class a" in found(answered(len(predicted), predicted=predicted), ten, limits)


def test_a_class_that_was_never_predicted_can_drift() -> None:
    ratios, p_values = ratios_of(np.array([1000, 0]), np.array([900, 100]))
    assert ratios[1] > 100
    assert p_values[1] < 1e-9


def test_classes_that_change_together_are_a_class_mix() -> None:
    distance, p = mix_of(np.array([250, 250, 250, 250]), np.array([10, 10, 0, 0]))
    assert distance == pytest.approx(0.5)
    assert p < 0.001


def test_slow_answers_are_drift_of_the_latency(answered: Answered, reference: Reference, limits: Monitoring) -> None:
    slow = np.where(np.arange(200) % 10 == 0, limits.milliseconds + 1, 5.0)
    finding = found(answered(200, milliseconds=slow), reference, limits)["latency"]
    assert finding.sentence == "10.0% of the single images took too long, and 1.0% may"


@pytest.mark.parametrize(("status", "cause"), [(503, "errors"), (400, "refusals")])
def test_failed_requests_are_drift(
    answered: Answered, reference: Reference, limits: Monitoring, status: int, cause: str
) -> None:
    assert cause in found(answered(100), reference, limits, np.full(20, status))


def test_the_share_of_refusals_counts_the_files_of_batches(
    answered: Answered, reference: Reference, limits: Monitoring
) -> None:
    batches = replace(answered(990), first=np.arange(990) % 99 == 0)
    findings = {one.test: one for one in compare(batches, np.full(10, 400), reference, limits)}
    assert findings["refusals"].window == pytest.approx(0.01)


def test_the_share_of_errors_does_not_count_refused_files(
    answered: Answered, reference: Reference, limits: Monitoring
) -> None:
    failures = np.array([400] * 900 + [503] * 5)
    findings = {one.test: one for one in compare(answered(95), failures, reference, limits)}
    assert findings["errors"].window == pytest.approx(0.05)


def test_what_an_older_record_lacks_is_not_compared(
    answered: Answered, reference: Reference, limits: Monitoring
) -> None:
    old = answered(100)
    old.statistics[:, 3:] = np.nan
    tests = {finding.test for finding in compare(old, NONE, reference, limits)}
    assert "contrast" in tests
    assert "gradient" not in tests
