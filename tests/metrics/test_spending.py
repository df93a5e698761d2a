"""The error budget of a test set."""

from itertools import accumulate

import pytest

from mobilenet_pipeline.metrics.spending import YEAR, left, level


def test_the_levels_of_ten_years_sum_to_less_than_the_budget() -> None:
    assert 0.04 < sum(level(0.05, number) for number in range(1, 10 * YEAR)) < 0.05


def test_what_is_left_is_the_budget_without_the_levels() -> None:
    levels = [level(0.05, number) for number in range(1, 3 * YEAR)]
    expected = [1 - spent / 0.05 for spent in accumulate(levels)]
    assert [left(number) for number in range(1, 3 * YEAR)] == pytest.approx(expected, abs=1e-12)


def test_no_later_comparison_has_a_higher_level() -> None:
    levels = [level(0.05, number) for number in range(1, 3 * YEAR)]
    assert levels == sorted(levels, reverse=True)


def test_a_new_test_set_has_the_whole_budget() -> None:
    assert left(0) == pytest.approx(1)


def test_a_comparison_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="numbered from 1, not 0"):
        level(0.05, 0)
