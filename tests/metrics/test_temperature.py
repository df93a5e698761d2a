import numpy as np
import pytest

from mobilenet_pipeline.metrics.temperature import fit_temperature


def test_the_temperature_undoes_overconfident_logits(calibrated):
    logits, labels = calibrated(20_000, sharpen=3.0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.03)


def test_calibrated_logits_have_temperature_one(calibrated):
    logits, labels = calibrated(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.03)


def test_a_perfect_model_gets_a_finite_temperature():
    assert fit_temperature(np.eye(10) * 50, np.arange(10)) >= 1 / 20
