"""A run that has nothing to do is recognised without the flow, and nothing else is taken for one."""

import mlflow
import pytest
from registry_fixtures import Packaging, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs, versions
from mobilenet_pipeline.registry.store import use_store
from mobilenet_pipeline.release import offline, unchanged
from mobilenet_pipeline.reports import results
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.files import write_text

NOTHING = "Nothing changed: all stages are up to date. Version 2 of digits-mobilenet (pretrained) is champion."


@pytest.fixture
def settled(recipe: Recipe, runs: Runs, packaging: Packaging) -> Recipe:
    """A recipe whose last run promoted version 2 and wrote its report."""
    runs((181, 183))
    use_store()  # the tests change it with MLflow's client
    for path in (results.results_path(recipe), paths.report_folder(recipe) / "index.html"):
        write_text(path, "{}")
    return recipe


def test_a_settled_recipe_has_nothing_to_do(settled: Recipe) -> None:
    assert unchanged.find(settled) == NOTHING


def test_a_lost_report_is_something_to_do(settled: Recipe) -> None:
    (paths.report_folder(settled) / "index.html").unlink()
    assert unchanged.find(settled) is None


def test_a_lost_verdict_is_something_to_do(settled: Recipe) -> None:
    paths.verdict_path(settled).unlink()
    assert unchanged.find(settled) is None


def test_a_lost_bento_is_something_to_do(settled: Recipe, packaging: Packaging) -> None:
    packaging.pointer = None
    packaging.bentos.clear()
    assert unchanged.find(settled) is None


def test_a_moved_alias_is_something_to_do(settled: Recipe) -> None:
    mlflow.MlflowClient().set_registered_model_alias(settled.registered_model, "champion", "1")
    assert unchanged.find(settled) is None


def test_a_withdrawal_in_the_registry_is_something_to_do(settled: Recipe) -> None:
    versions.set_tag(versions.find(settled.registered_model, "1"), "withdrawn", "looks odd")
    assert unchanged.find(settled) is None


def test_a_decision_that_waits_for_the_registry_is_something_to_do(settled: Recipe) -> None:
    offline.reject(settled, "1", "too slow", "ann")
    assert unchanged.find(settled) is None
    assert len(offline.pending(settled)) == 1


def test_the_active_run_of_a_killed_process_is_something_to_do(settled: Recipe) -> None:
    mlflow.MlflowClient().create_run(runs.experiment(settled))
    assert unchanged.find(settled) is None


def test_an_artefact_that_the_registry_lost_is_something_to_do(
    settled: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "is_stored", lambda version: version.version != "2")
    assert unchanged.find(settled) is None
