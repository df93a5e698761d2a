"""Backup and restore of a registry in PostgreSQL, on a real server; the shared records are in the same database."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from team_servers import CannotStart, Servers

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations import backup
from mobilenet_pipeline.operations.backup import BackupError
from mobilenet_pipeline.registry import snapshot
from mobilenet_pipeline.registry.store import StoreError, artefact_location, use_store
from mobilenet_pipeline.workspace import history, records
from mobilenet_pipeline.workspace.history import Event

numbers = itertools.count()


def silent(sentence: str) -> None:
    pass


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL; its database `mlflow` has MLflow's tables, and nothing uses it."""
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        servers.start_databases()
    except CannotStart as reason:
        pytest.skip(reason=str(reason))
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", servers.address("mlflow"))
            MlflowClient(use_store()).search_experiments()
        servers.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlflow'")
        yield servers
    finally:
        servers.stop_all()


@pytest.fixture
def client(servers: Servers, workspace: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A workspace whose registry and shared records are in one database; version 1 is champion."""
    name = f"test{next(numbers)}"
    servers.execute(f"CREATE DATABASE {name} TEMPLATE mlflow")
    for setting in ("MLFLOW_TRACKING_URI", records.SETTING):
        monkeypatch.setenv(setting, servers.address(name))
    client, model = MlflowClient(use_store()), recipe.registered_model
    run = client.create_run(client.create_experiment(recipe.name, artefact_location(recipe.name))).info
    client.log_text(run.run_id, "the model", "served/model.tflite")
    client.create_registered_model(model)
    client.create_model_version(model, f"{run.artifact_uri}/served", run.run_id)
    client.set_registered_model_alias(model, "champion", "1")
    decide(recipe, "1")
    return client


@pytest.fixture
def file(client: MlflowClient, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup; after it, the alias was deleted, and the history has another line."""
    file = tmp_path_factory.mktemp("backups") / "backup.tar.gz"
    backup.backup(file, silent)
    client.delete_registered_model_alias(recipe.registered_model, "champion")
    decide(recipe, "2")
    return file


def decide(recipe: Recipe, version: str) -> None:
    """Write a line of the history."""
    history.append(recipe, Event("promoted", version, "the gate", "", None, version, "r" * 32, 0.9))


def has_champion(client: MlflowClient, recipe: Recipe) -> bool:
    return "champion" in client.get_registered_model(recipe.registered_model).aliases


def files_of(workspace: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file() and path.name[0] != "."}


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_database_comes_back(client: MlflowClient, file: Path, recipe: Recipe, workspace: Path) -> None:
    backup.restore(file, force=True, say=silent)
    assert has_champion(client, recipe)
    assert [*workspace.glob("before-restore-*/mlflow.dump")]


def test_another_folder_gets_the_artefacts_under_its_own_path(
    client: MlflowClient, file: Path, recipe: Recipe, workspace: Path, tmp_path_factory, monkeypatch
) -> None:
    other = tmp_path_factory.mktemp("it's another")
    (other / "params.yaml").write_bytes((workspace / "params.yaml").read_bytes())
    monkeypatch.chdir(other)
    backup.restore(file, force=True, say=silent)
    version = client.get_model_version(recipe.registered_model, "1")
    assert version.source == f"{client.get_run(version.run_id).info.artifact_uri}/served"
    assert version.source.startswith(other.as_uri())


def test_a_decision_after_the_backup_stays_in_the_shared_record(
    client: MlflowClient, file: Path, recipe: Recipe, tmp_path_factory
) -> None:
    backup.restore(file, force=True, say=silent)
    elsewhere = history.read(recipe, tmp_path_factory.mktemp("elsewhere"))
    assert [event.version for event in elsewhere] == ["1", "2"]


def test_a_database_that_cannot_be_loaded_changes_nothing(
    client: MlflowClient, file: Path, recipe: Recipe, workspace: Path, monkeypatch
) -> None:
    before = files_of(workspace)
    monkeypatch.setattr(snapshot, "_relocation", lambda *_: ["UPDATE no_such_table SET x = 1;"])
    with pytest.raises(StoreError, match='relation "no_such_table" does not exist'):
        backup.restore(file, force=True, say=silent)
    assert files_of(workspace) == before
    assert not has_champion(client, recipe)


def test_a_file_that_cannot_be_replaced_leaves_the_database(
    client: MlflowClient, file: Path, recipe: Recipe, workspace: Path, monkeypatch
) -> None:
    before = files_of(workspace)
    monkeypatch.setattr(backup.shutil, "move", stop)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(file, force=True, say=silent)
    assert files_of(workspace) == before
    assert not has_champion(client, recipe)


@pytest.mark.parametrize("loaded", [False, True])
def test_files_and_database_are_of_one_time_after_a_kill(
    client: MlflowClient, file: Path, recipe: Recipe, workspace: Path, monkeypatch, loaded: bool
) -> None:
    (workspace / "mlruns" / "new").mkdir()
    load = snapshot.load_database
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_undo", lambda _: None)  # SIGKILL leaves no time for it
        patch.setattr(snapshot, "load_database", lambda *words, **more: (loaded and load(*words, **more), stop()))
        with pytest.raises(KeyboardInterrupt):
            backup.restore(file, force=True, say=silent)
    with pytest.raises(BackupError, match="--force"):
        backup.restore(file, say=silent)
    assert (has_champion(client, recipe), (workspace / "mlruns" / "new").exists()) == (loaded, not loaded)
