import pytest

from mobilenet_pipeline.training.schedule import OneCycle


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    schedule = OneCycle()
    schedule.set(0.2, 0.25, 40)
    rates = [float(schedule(step)) for step in range(40)]
    assert max(rates) == rates[9] == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
