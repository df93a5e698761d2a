import numpy as np
import pytest

from mobilenet_pipeline.metrics.temperature import fit_temperature


def test_the_temperature_undoes_overconfident_logits(calibrated):
    logits, labels = calibrated(20_000, sharpen=3.0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.03)


def test_calibrated_logits_have_temperature_one(calibrated):
    logits, labels = calibrated(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("count", [10, 300])
def test_a_model_without_a_mistake_is_not_more_certain_than_its_images_allow(count):
    labels = np.arange(count) % 10
    logits = np.eye(10)[labels] * 50
    scaled = np.exp(logits / fit_temperature(logits, labels))
    doubt = 1 - (scaled.max(axis=1) / scaled.sum(axis=1)).mean()
    assert doubt == pytest.approx(0.9 / (count + 2), rel=0.01)
