"""A recipe belongs to one registry: another or an empty one is refused until somebody wants it."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import identity, runs
from mobilenet_pipeline.registry.identity import OtherRegistry
from mobilenet_pipeline.workspace import history, records
from mobilenet_pipeline.workspace.history import Event

PROMOTED = Event("promoted", "2", "the gate", "It is the first.", None, "2", "r" * 32, 0.9)


@pytest.fixture
def joined(recipe: Recipe, store: Path) -> Path:
    """A workspace whose registry is remembered."""
    runs.check_store(recipe)
    return store


@pytest.fixture
def elsewhere(joined: Path, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of another store, which is empty."""
    database = tmp_path_factory.mktemp("elsewhere") / "mlflow.db"
    database.write_bytes(migrated.read_bytes())
    return f"sqlite:///{database}"


def test_the_same_registry_is_accepted(recipe: Recipe, joined: Path) -> None:
    identity.check(recipe)


def test_another_registry_is_refused(
    recipe: Recipe, joined: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    with pytest.raises(OtherRegistry, match=rf"belongs to the registry that was at sqlite:///{joined}/mlflow.db"):
        identity.check(recipe)


def test_a_forgotten_setting_creates_no_database(
    recipe: Recipe, joined: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    identity.start_new(recipe)
    (joined / "mlflow.db").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(OtherRegistry, match=r"MLFLOW_TRACKING_URI is not set, and .*mlflow\.db has no versions"):
        identity.check(recipe)
    assert not (joined / "mlflow.db").exists()


def test_a_new_registry_is_accepted_once_it_is_wanted(
    recipe: Recipe, joined: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    identity.start_new(recipe)
    runs.check_store(recipe)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(OtherRegistry):
        identity.check(recipe)


def test_an_empty_registry_beside_a_history_is_refused(recipe: Recipe, store: Path) -> None:
    history.append(recipe, PROMOTED)
    with pytest.raises(OtherRegistry, match=r"restore FILE`.* run --recipe digits --new-registry"):
        runs.check_store(recipe)


def test_a_registry_of_an_earlier_version_is_adopted(recipe: Recipe, client: MlflowClient) -> None:
    history.append(recipe, PROMOTED)
    client.create_registered_model(recipe.registered_model)
    client.create_model_version(recipe.registered_model, "/elsewhere", run_id=PROMOTED.run)
    runs.check_store(recipe)
    assert identity.remembered(recipe)


def test_a_second_workspace_must_share_the_records(
    recipe: Recipe, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(records.SETTING, f"sqlite:///{joined}/records.db")
    runs.check_store(recipe)
    monkeypatch.delenv(records.SETTING)
    with pytest.raises(OtherRegistry, match=rf"recorded at sqlite:///.*/records.db, and {records.SETTING} is not set"):
        identity.check(recipe)


def test_another_database_of_the_records_is_refused_and_stays_empty(
    recipe: Recipe, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(records.SETTING, f"sqlite:///{joined}/records.db")
    runs.check_store(recipe)
    history.append(recipe, PROMOTED)
    monkeypatch.setenv(records.SETTING, f"sqlite:///{joined}/typo.db")
    with pytest.raises(OtherRegistry, match=r"was at sqlite:///.*/records\.db, and .*/typo\.db is another one"):
        identity.check(recipe)
    (joined / "records/digits/history.jsonl").unlink()
    assert history.read(recipe) == []


def test_another_database_of_the_records_is_accepted_once_it_is_wanted(
    recipe: Recipe, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("records.db", "new.db"):
        monkeypatch.setenv(records.SETTING, f"sqlite:///{joined}/{name}")
        identity.start_new(recipe)
    identity.check(recipe)


def test_a_workspace_of_an_earlier_version_refuses_another_registry(recipe: Recipe, joined: Path) -> None:
    history.append(recipe, PROMOTED)
    (joined / "records/digits/registry.jsonl").unlink()
    with pytest.raises(OtherRegistry, match="belongs to a registry with the versions of its history"):
        identity.check(recipe)


def test_a_damaged_record_is_named(recipe: Recipe, joined: Path) -> None:
    with (joined / "records/digits/registry.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(records.RecordError, match=r"registry\.jsonl, line 2 is damaged"):
        identity.check(recipe)


def test_a_deleted_registered_model_beside_a_history_is_refused(recipe: Recipe, joined: Path) -> None:
    history.append(recipe, PROMOTED)
    with pytest.raises(OtherRegistry, match=r"mlflow\.db has no versions of it"):
        identity.check(recipe)


def test_a_new_registry_may_be_empty_until_its_first_promotion(recipe: Recipe, joined: Path) -> None:
    history.append(recipe, PROMOTED)
    identity.start_new(recipe)
    identity.check(recipe)
    history.append(recipe, PROMOTED)
    with pytest.raises(OtherRegistry):
        identity.check(recipe)
