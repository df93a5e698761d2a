"""Old flow runs, on a real Prefect server."""

from typing import Any

import pytest
from prefect import flow

from flows import upkeep
from mobilenet_pipeline.config import Recipe


def work(recipe: str) -> None:
    """Do nothing."""


@pytest.fixture
def three_runs(prefect: Any) -> list[str]:
    """Names of three finished runs of a flow of digits, the oldest first, beside one of another recipe."""
    for recipe in ("digits", "digits", "digits", "cifar10"):
        flow(name="monitor")(work)(recipe)
    runs = [run for run in upkeep._finished(prefect) if run.flow_id == prefect.read_flow_by_name("monitor").id]
    return [run.name for run in reversed(runs) if run.parameters == {"recipe": "digits"}][-3:]


def surplus(recipe: Recipe, names: list[str], keep: int) -> list[str]:
    found = [each.name.removeprefix("flow run ") for each in upkeep.leftovers(recipe, keep)]
    return [name for name in names if name in found]


def test_the_newest_flow_runs_stay(three_runs: list[str], recipe: Recipe, workspace: Any) -> None:
    assert surplus(recipe, three_runs, keep=2) == three_runs[:1]


def test_a_removed_flow_run_is_gone(three_runs: list[str], recipe: Recipe, workspace: Any) -> None:
    for each in upkeep.leftovers(recipe, 1):
        if each.name.removeprefix("flow run ") in three_runs:
            each.remove()
    assert surplus(recipe, three_runs, keep=0) == three_runs[-1:]


def test_the_flow_runs_of_another_project_stay(prefect: Any, recipe: Recipe, workspace: Any) -> None:
    of_another_project = flow(name="nightly-import")(work)
    run = of_another_project("digits", return_state=True).state_details.flow_run_id
    assert prefect.read_flow_run(run).name not in str(upkeep.leftovers(recipe, 0))
