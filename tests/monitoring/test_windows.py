"""Windows: long enough, full enough, and the same for every program."""

import numpy as np

from mobilenet_pipeline.monitoring.windows import Scale, cut

QUARTER = Scale("short", 900, 10)


def test_windows_end_at_multiples_of_their_length() -> None:
    assert cut(np.arange(0, 3600, 10.0), 0, 3000, QUARTER) == [(0, 900), (900, 1800), (1800, 2700)]


def test_a_window_without_enough_images_lasts_longer() -> None:
    assert cut(np.arange(0, 3600, 120.0), 0, 3600, QUARTER) == [(0, 1800), (1800, 3600)]


def test_a_window_that_is_not_full_waits() -> None:
    assert cut(np.arange(0, 600, 120.0), 0, 1e6, QUARTER) == []


def test_answers_before_the_begin_count_for_no_window() -> None:
    assert cut(np.arange(0, 900, 10.0), 900, 1e6, QUARTER) == []
