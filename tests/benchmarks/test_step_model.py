"""The model of a step of data-parallel training."""

import pytest
from step_model import Step, line

STEP = Step(per_step=0.01, per_image=0.001, bytes=1e6, calls=2, latency=0.001, bandwidth=1e8)


def test_one_worker_exchanges_nothing():
    assert STEP.seconds(1, 100) == pytest.approx(0.11)


def test_two_workers_exchange_the_bytes_once_and_two_messages_a_call():
    # 2 · 1 messages · 1 ms · 2 calls, and 2 · ½ · 1 MB at 100 MB/s
    assert STEP.exchange(2) == pytest.approx(0.004 + 0.01)


def test_many_workers_exchange_by_trees():
    # 2 · 10 messages · 1 ms · 2 calls, and twice the bytes; a ring would need 4.1 s for its messages
    assert STEP.exchange(1024) == pytest.approx(0.04 + 0.02)


def test_the_efficiency_is_the_share_of_compute():
    assert STEP.efficiency(2, 100) == pytest.approx(0.11 / 0.124)


def test_more_images_on_each_worker_are_more_efficient():
    assert STEP.efficiency(64, 256) > STEP.efficiency(64, 32)


def test_a_busy_processor_slows_compute_only():
    assert STEP.slowed(2).seconds(2, 100) == pytest.approx(0.22 + 0.014)


def test_a_line_goes_through_both_points():
    assert line((2, 5), (4, 9)) == (1, 2)
