import pytest
from small_training import SMALL, trained

from mobilenet_pipeline.training.budget import Costs
from mobilenet_pipeline.training.plan import Plan

PLAN = Plan(length=10, per_epoch=4, sizes=(16, 24, 32), costs=Costs([4.0, 8.0, 12.0], 1.0))


def test_input_sizes_share_the_steps_equally():
    assert [PLAN.size(step) for step in range(10)] == [16] * 4 + [24] * 3 + [32] * 3


def test_the_next_phase_begins_where_the_size_changes():
    assert [PLAN.next_phase(step) for step in range(10)] == [4] * 4 + [7] * 3 + [10] * 3


def test_the_last_epoch_counts_though_it_is_cut_short():
    assert PLAN.epochs == 3


def test_the_whole_plan_costs_each_size_for_its_share():
    assert PLAN.cost(0, 10) == pytest.approx(10 / 3 * (1 + 2 + 3))


def test_costs_of_two_parts_add_up_to_the_whole():
    assert PLAN.cost(0, 5) + PLAN.cost(5, 10) == pytest.approx(PLAN.cost(0, 10))


def test_a_budget_below_one_epoch_is_refused():
    with pytest.raises(ValueError, match=r"cpu_minutes is 1e-06, .* set cpu_minutes to [\d.]+ or more, or lower alpha"):
        trained(SMALL.model_copy(update={"epochs": None, "cpu_minutes": 1e-6}))
