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
    # 19 images, coverage 90 %: 18 must be covered. 16 are right; the wrong ones give their class 0.3, 0.2 and 0.1.
    probabilities = np.tile(np.array([0.7, 0.3, 0.0], np.float32), (19, 1))
    probabilities[17], probabilities[18] = [0.8, 0.2, 0.0], [0.9, 0.1, 0.0]
    labels = np.array([0] * 16 + [1] * 3)
    assert conformal.probability_threshold(probabilities, labels, 0.9) == pytest.approx(0.2)


@pytest.mark.parametrize(("rows", "threshold"), [(18, 0.0), (19, 1.0)])
def test_too_few_validation_images_put_every_class_into_the_set(rows, threshold):
    probabilities = np.tile(np.array([0.7, 0.3], np.float32), (rows, 1))
    assert conformal.probability_threshold(probabilities, np.zeros(rows, int), 0.95) == threshold


def test_a_model_more_accurate_than_the_coverage_has_sets_of_one_class():
    probabilities, labels = np.tile(np.array([0.9, 0.1], np.float32), (100, 1)), np.arange(100) < 2
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
    assert np.mean(shares) == pytest.approx(0.9, abs=0.015)


def test_counting_the_class_that_is_always_in_the_set_makes_smaller_sets():
    probabilities, labels = drawn(np.random.default_rng(0), 5000, 10, 3.0)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    plain = np.sort(probabilities[np.arange(5000), labels])[5000 - int(np.ceil(5001 * (accuracy + 0.01)))]
    ours = conformal.probability_threshold(probabilities, labels, accuracy + 0.01)
    assert conformal.set_sizes(probabilities, ours).mean() < prediction_sets(probabilities, plain).sum(axis=1).mean()


def test_honest_sets_fall_below_the_bound_in_one_of_forty_models():
    rng, low = np.random.default_rng(1), 0
    bound = conformal.least_covered(150, 100, 0.9)
    for _ in range(400):
        threshold = conformal.probability_threshold(*drawn(rng, 100, 10, 3.0), 0.9)
        low += conformal.covered(*drawn(rng, 150, 10, 3.0), threshold).sum() < bound
    assert low / 400 < 0.05


def test_sets_of_every_class_must_cover_every_image():
    assert conformal.least_covered(100, 10, 0.95) == 100


def test_the_bound_of_many_images_is_close_to_the_coverage():
    assert conformal.least_covered(10_000, 5_000, 0.95) / 10_000 == pytest.approx(0.9425, abs=0.001)


@pytest.mark.parametrize(("rows", "threshold"), [(18, None), (19, 0.0), (99, 4.0)])
def test_at_most_the_stated_share_of_familiar_images_is_flagged(rows, threshold):
    assert conformal.energy_threshold(np.arange(rows, dtype=float), 0.05) == threshold
