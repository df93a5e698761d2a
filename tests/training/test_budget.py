import pytest

from mobilenet_pipeline.training import budget

COSTS = budget.Costs([10.0, 30.0], 5.0)  # of epochs of 100 steps


def test_steps_cost_what_their_input_size_costs():
    assert COSTS.between(0, 200, 400, 100) == pytest.approx(20)
    assert COSTS.between(150, 250, 400, 100) == pytest.approx(5 + 15)


def test_a_budget_pays_for_the_steps_and_the_last_validation():
    assert budget.affordable(COSTS, 100, 85.0) == pytest.approx(400, abs=1)


def test_a_training_under_way_pays_only_for_what_is_left():
    assert budget.affordable(COSTS, 100, 65.0, step=200) == pytest.approx(400, abs=1)


def test_half_as_many_steps_are_affordable_at_twice_the_cost():
    assert budget.affordable(COSTS.times(2.0), 100, 85.0) == pytest.approx(188, abs=1)


def test_a_training_whose_budget_is_spent_has_one_more_step():
    assert budget.affordable(COSTS, 100, -3.0, step=200) == 201


def test_two_percent_of_the_budget_are_kept_back():
    assert budget.remaining(10.0, 100.0) == pytest.approx(600 * 0.98 - 100)


def test_two_seconds_of_a_short_budget_are_kept_back():
    assert budget.remaining(1.0, 0.0) == pytest.approx(58)


@pytest.mark.parametrize("seconds", [30.0, 3000.0])
def test_minutes_for_seconds_leave_them_after_the_reserve(seconds):
    assert budget.remaining(budget.minutes_for(seconds), 0.0) >= seconds
