"""Decisions while MLflow is away: this machine's service follows at once, the registry when MLflow answers again."""

import pytest
from registry_fixtures import Packaging, Runs

from mobilenet_pipeline import cli
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases, versions
from mobilenet_pipeline.registry.versions import number_of
from mobilenet_pipeline.release import offline, promotion, review
from mobilenet_pipeline.release.review import ReviewError
from mobilenet_pipeline.workspace import history, paths
from mobilenet_pipeline.workspace.records import RecordError

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def champions(runs: Runs) -> None:
    """Version 2 was promoted, then version 4."""
    runs((181, 183), (182, 195))


@pytest.fixture
def rolled_back(recipe: Recipe, champions: None) -> str:
    """The sentence of a rollback from version 4 to 2 while MLflow is away."""
    return offline.rollback(recipe, None, "cats look odd", "ann")


def champion(recipe: Recipe) -> str | None:
    return number_of(aliases.with_alias(recipe.registered_model, "champion"))


def test_a_rollback_serves_the_previous_champion(recipe: Recipe, packaging: Packaging, rolled_back: str) -> None:
    assert packaging.must_be_live(recipe).versions == {"champion": "2", "challenger": None}
    assert rolled_back.startswith("Version 2 of digits-mobilenet is served on this machine. Version 4 is withdrawn")


def test_the_registry_follows_when_it_answers(recipe: Recipe, rolled_back: str) -> None:
    (sentence,) = offline.replay(recipe)
    assert sentence == "Version 2 of digits-mobilenet is champion, version 4 is withdrawn."
    assert champion(recipe) == "2"
    assert str(versions.find(recipe.registered_model, "4").withdrawn).startswith(
        "rolled back by ann: cats look odd (decided "
    )


def test_the_history_has_the_decision_once(recipe: Recipe, rolled_back: str) -> None:
    offline.replay(recipe)
    assert offline.replay(recipe) == []
    assert [(event.what, event.version) for event in history.read(recipe)][-1] == ("rolled back", "2")
    assert len(history.read(recipe)) == 3


def test_the_command_said_again_does_nothing_more(recipe: Recipe, rolled_back: str) -> None:
    again = offline.rollback(recipe, None, "cats look odd", "ann")
    assert again == "Version 2 of digits-mobilenet is served already."
    assert len(offline.pending(recipe)) == 1


def test_a_champion_promoted_meanwhile_stays(recipe: Recipe, rolled_back: str) -> None:
    review.rollback(recipe, "3", "another workspace", "bob")
    offline.replay(recipe)
    assert champion(recipe) == "3"
    assert versions.find(recipe.registered_model, "4").withdrawn


def test_a_rejection_waits_for_the_registry(recipe: Recipe, champions: None) -> None:
    offline.reject(recipe, "3", "too slow", "ann")
    assert versions.find(recipe.registered_model, "3").withdrawn is None
    offline.replay(recipe)
    assert str(versions.find(recipe.registered_model, "3").withdrawn).startswith("rejected by ann: too slow (decided ")


def test_the_served_version_cannot_be_rejected(recipe: Recipe, champions: None) -> None:
    with pytest.raises(ReviewError, match="version 4 of digits-mobilenet is champion"):
        offline.reject(recipe, "4", "odd", "ann")


def test_a_decision_on_a_version_that_is_gone_is_dropped(recipe: Recipe, champions: None) -> None:
    offline.reject(recipe, "7", "odd", "ann")
    (sentence,) = offline.replay(recipe)
    assert sentence.startswith("The reject of version 7 by ann is dropped: digits-mobilenet has no version 7")
    assert offline.pending(recipe) == []


def test_without_a_copy_of_the_version_the_service_stays(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    packaging.bentos = packaging.bentos[-1:]
    packaging.bentos[0].hashes["challenger"] = None
    with pytest.raises(ReviewError, match="has no copy of version 2"):
        offline.rollback(recipe, None, "odd", "ann")
    assert packaging.must_be_live(recipe).versions["champion"] == "4"
    assert offline.pending(recipe) == []


def test_a_bento_that_does_not_answer_changes_nothing(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    packaging.broken = True
    with pytest.raises(RuntimeError):
        offline.rollback(recipe, None, "odd", "ann")
    assert (packaging.must_be_live(recipe).versions["champion"], offline.pending(recipe)) == ("4", [])


def test_a_damaged_journal_is_named(recipe: Recipe, rolled_back: str) -> None:
    with paths.journal_path(recipe).open("a") as file:
        file.write("{\n")
    with pytest.raises(RecordError, match=r"journal\.jsonl, line 2 is damaged"):
        offline.replay(recipe)


def test_the_command_decides_without_mlflow_and_the_next_with_it(
    champions: None,
    recipe: Recipe,
    packaging: Packaging,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as outage:
        outage.setenv("MLFLOW_TRACKING_URI", AWAY)
        assert cli.main(["rollback", "--reason", "cats look odd"]) == 0
    shown = capsys.readouterr()
    assert "no MLflow server answers at http://127.0.0.1:9" in shown.err
    assert "Version 2 of digits-mobilenet is served on this machine." in shown.out
    assert cli.main(["status"]) == 3
    assert "attention   The decision on version 4 waits for MLflow" in capsys.readouterr().out
    assert cli.main(["reject", "3", "--reason", "slow"]) == 0
    assert champion(recipe) == "2"


def test_a_rollback_that_mlflow_left_half_recorded_is_noted(
    recipe: Recipe, champions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("MLflow went away")

    with monkeypatch.context() as outage:
        outage.setattr(promotion, "settle", away)
        with pytest.raises(ConnectionError):
            review.rollback(recipe, "2", "cats look odd", "ann")
        assert "Version 4 is withdrawn" in offline.rollback(recipe, "2", "cats look odd", "ann")
    offline.replay(recipe)
    event = history.read(recipe)[-1]
    assert (event.what, event.version, event.who) == ("rolled back", "2", "ann")
