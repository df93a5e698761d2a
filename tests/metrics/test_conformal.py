import numpy as np
import pytest

from mobilenet_pipeline.inference.trust import prediction_sets
from mobilenet_pipeline.metrics import conformal


def drawn(rng: np.random.Generator, rows: int, classes: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of uncertain classes, and labels that are drawn from them."""
    logits = rng.normal(0, sharpness, (rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(0, classes - 1)
    return probabilities.astype(np.float32), labels


def test_the_threshold_is_that_of_a_hand_calculation():
    # 100 images, coverage 90 %: 96 must be covered, since 95 or more is not rare enough if 90 % is the truth:
    # P(95 or more) = 5.8 %, P(96 or more) = 2.4 %. 94 are right; the wrong ones give their class 0.30, 0.29, 0.28 …
    probabilities = np.tile(np.array([0.7, 0.3, 0.0], np.float32), (100, 1))
    probabilities[94:, 1] = 0.3 - 0.01 * np.arange(6)
    probabilities[94:, 0] = 1 - probabilities[94:, 1]
    labels = (np.arange(100) >= 94).astype(int)
    assert conformal.probability_threshold(probabilities, labels, 0.9) == pytest.approx(0.29)


@pytest.mark.parametrize(("rows", "threshold"), [(71, 0.0), (72, 1.0)])
def test_too_few_validation_images_put_every_class_into_the_set(rows, threshold):
    probabilities = np.tile(np.array([0.7, 0.3], np.float32), (rows, 1))
    assert conformal.probability_threshold(probabilities, np.zeros(rows, int), 0.95) == threshold


def test_a_model_more_accurate_than_the_coverage_has_sets_of_one_class():
    probabilities, labels = np.tile(np.array([0.9, 0.1], np.float32), (500, 1)), np.arange(500) < 10
    threshold = conformal.probability_threshold(probabilities, labels.astype(int), 0.95)
    assert set(conformal.set_sizes(probabilities, threshold)) == {1}


@pytest.mark.parametrize(("classes", "sharpness"), [(10, 3.0), (100, 3.0), (1000, 6.0)])
def test_new_images_are_covered_as_promised(classes, sharpness):
    rng = np.random.default_rng(classes)
    shares = []
    for _ in range(60):
        validation, test = drawn(rng, 200, classes, sharpness), drawn(rng, 200, classes, sharpness)
        threshold = conformal.probability_threshold(*validation, 0.9)
        shares.append(conformal.covered(*test, threshold).mean())
    assert np.quantile(shares, 0.025) > 0.9 - 0.045  # what a test of 200 images adds
    assert 0.92 < np.mean(shares) < 0.96


def test_counting_the_class_that_is_always_in_the_set_makes_smaller_sets():
    probabilities, labels = drawn(np.random.default_rng(0), 5000, 10, 3.0)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    plain = np.sort(probabilities[np.arange(5000), labels])[5000 - int(np.ceil(5001 * (accuracy + 0.01)))]
    ours = conformal.probability_threshold(probabilities, labels, accuracy + 0.01)
    assert conformal.set_sizes(probabilities, ours).mean() < prediction_sets(probabilities, plain).sum(axis=1).mean()


def test_of_forty_thresholds_at_most_one_covers_less_than_promised():
    rng, many = np.random.default_rng(2), drawn(np.random.default_rng(3), 20_000, 10, 3.0)
    thresholds = [conformal.probability_threshold(*drawn(rng, 300, 10, 3.0), 0.9) for _ in range(400)]
    assert sum(conformal.covered(*many, threshold).mean() < 0.9 for threshold in thresholds) / 400 < 0.05


def test_honest_sets_hardly_ever_fall_below_the_bound():
    rng, low = np.random.default_rng(1), 0
    bound = conformal.least_covered(150, 0.9)
    for _ in range(400):
        threshold = conformal.probability_threshold(*drawn(rng, 100, 10, 3.0), 0.9)
        low += conformal.covered(*drawn(rng, 150, 10, 3.0), threshold).sum() < bound
    assert low / 400 < 0.01


def test_the_bound_is_that_of_a_binomial_test():
    # Of samples of 10,000 images, 2.5 % lie below 95 % − 1.96 · √(0.95 · 0.05 / 10,000).
    assert conformal.least_covered(10_000, 0.95) / 10_000 == pytest.approx(0.95 - 1.96 * 0.00218, abs=0.0001)


@pytest.mark.parametrize(("rows", "threshold"), [(18, None), (19, 0.0), (99, 4.0)])
def test_at_most_the_stated_share_of_familiar_images_is_flagged(rows, threshold):
    assert conformal.energy_threshold(np.arange(rows, dtype=float), 0.05) == threshold
