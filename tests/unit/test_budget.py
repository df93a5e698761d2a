import pytest

from mobilenet_pipeline import budget

COSTS = budget.Costs([10.0, 30.0], 5.0)  # of epochs of 100 steps


def test_steps_cost_what_their_input_size_costs():
    assert COSTS.between(0, 200, 400, 100) == pytest.approx(20)
    assert COSTS.between(150, 250, 400, 100) == pytest.approx(5 + 15)


def test_a_training_is_as_long_as_the_budget_pays_for_with_its_last_validation():
    assert budget.affordable(COSTS, 100, 85.0) == pytest.approx(400, abs=1)


def test_a_training_that_has_gone_some_way_pays_only_for_what_is_left():
    assert budget.affordable(COSTS, 100, 65.0, step=200) == pytest.approx(400, abs=1)


def test_where_everything_takes_twice_as_long_half_as_much_is_affordable():
    assert budget.affordable(COSTS.times(2.0), 100, 85.0) == pytest.approx(188, abs=1)


def test_a_training_whose_budget_is_spent_has_one_more_step():
    assert budget.affordable(COSTS, 100, -3.0, step=200) == 201
