"""A second machine serves what the registry says, whoever promoted it."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from registry_fixtures import Packaging, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.identity import OtherRegistry
from mobilenet_pipeline.registry.store import StoreAwayError
from mobilenet_pipeline.release import bento, follow, offline, promotion, review
from mobilenet_pipeline.workspace import history, paths, records


@pytest.fixture
def champions(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 was promoted, then version 4, with shared records."""
    runs((181, 183), (182, 195))
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")


@pytest.fixture
def machine(
    champions: None,
    recipe: Recipe,
    store: Path,
    packaging: Packaging,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Packaging:
    """A second workspace with the same settings and an empty Bento store; it is the current directory."""
    history.read(recipe)
    own = Packaging()
    monkeypatch.chdir(tmp_path_factory.mktemp("machine"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    for name in ("package", "check", "put_live", "live", "must_be_live", "stored_model", "discard"):
        monkeypatch.setattr(bento, name, getattr(own, name))
    return own


def served(recipe: Recipe, machine: Packaging) -> str | None:
    live = machine.live(recipe)
    return live and live.versions["champion"]


def test_an_empty_machine_builds_the_champion(recipe: Recipe, machine: Packaging) -> None:
    (sentence,) = follow.look(recipe)
    assert sentence.startswith("Version 4 of digits-mobilenet is served now: Bento digits-mobilenet:")
    assert served(recipe, machine) == "4"


def test_an_unchanged_registry_builds_nothing(recipe: Recipe, machine: Packaging) -> None:
    follow.look(recipe)
    assert follow.look(recipe) == []
    assert len(machine.bentos) == 1


def test_a_rollback_elsewhere_is_followed(
    recipe: Recipe, machine: Packaging, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow.look(recipe)
    review.rollback(recipe, None, "odd", "ann", store)
    machine.pointer = machine.bentos[0].tag
    follow.look(recipe)
    assert served(recipe, machine) == "2"


def test_both_workspaces_know_the_withdrawal(recipe: Recipe, machine: Packaging, store: Path) -> None:
    review.rollback(recipe, None, "odd", "ann", store)
    assert history.withdrawn(recipe, store) == history.withdrawn(recipe)
    assert history.read(recipe, store) == history.read(recipe)


def test_a_bento_that_does_not_answer_is_not_served(recipe: Recipe, machine: Packaging) -> None:
    follow.look(recipe)
    review.rollback(recipe, None, "odd", "ann")
    machine.pointer, machine.broken = machine.bentos[0].tag, True
    machine.bentos = machine.bentos[:1]
    with pytest.raises(RuntimeError):
        follow.look(recipe)
    assert served(recipe, machine) == "4"


def test_the_aliases_stay(recipe: Recipe, machine: Packaging) -> None:
    before = promotion.read_state(recipe).aliases
    follow.look(recipe)
    assert promotion.read_state(recipe).aliases == before


def test_an_alias_that_moves_during_the_trial_is_followed_by_the_next_look(
    recipe: Recipe, machine: Packaging, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(*_: object) -> None:
        from mobilenet_pipeline.registry import aliases

        aliases.set_alias(recipe.registered_model, "champion", "2")

    monkeypatch.setattr(bento, "check", move)
    assert follow.look(recipe) == []
    assert served(recipe, machine) is None
    assert machine.bentos == []
    follow.look(recipe)
    assert served(recipe, machine) == "2"


def test_decisions_of_the_outage_come_before_the_alias(recipe: Recipe, machine: Packaging) -> None:
    review.rollback(recipe, "2", "first", "ann")
    review.rollback(recipe, "4", "second", "ann")
    follow.look(recipe)
    offline.rollback(recipe, "2", "cats look odd", "ann")
    follow.look(recipe)
    assert served(recipe, machine) == "2"
    assert not paths.journal_path(recipe).read_text()


def test_a_machine_that_only_serves_notices_a_forgotten_setting(
    recipe: Recipe, machine: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(records.SETTING)
    follow.look(recipe)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(OtherRegistry, match="MLFLOW_TRACKING_URI is not set"):
        follow.look(recipe)
    assert not Path("mlflow.db").exists()


def test_a_server_s_error_is_one_that_the_service_outlives(
    recipe: Recipe, machine: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("the database is starting up", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(promotion, "read_state", fail)
    with pytest.raises(StoreAwayError, match="the database is starting up"):
        follow.look(recipe)
