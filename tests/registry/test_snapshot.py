"""Copies of MLflow's database: their kinds, their check, and artefacts that moved."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelOutput
from registry_fixtures import Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import snapshot
from mobilenet_pipeline.registry.store import StoreError, database_uri, use_store

POSTGRES = "postgresql://team:secret@127.0.0.1:9/mlflow"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("", "file"), ("sqlite:////x/y.db", "file"), (POSTGRES, "database"), ("https://mlflow.example.com", "server")],
)
def test_the_kind_of_a_store_follows_its_address(monkeypatch: pytest.MonkeyPatch, uri: str, expected: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert snapshot.kind() == expected


def test_a_store_that_cannot_be_copied_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql://team:secret@db/mlflow")
    with pytest.raises(StoreError, match=r"mysql://db/mlflow .*use its own tools"):
        snapshot.kind()


def test_a_path_with_a_question_mark_is_that_of_the_file(odd_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(odd_workspace / "mlflow.db"))
    assert snapshot.database() == odd_workspace / "mlflow.db"


def test_a_copy_has_all_runs(recipe: Recipe, runs: Runs, tmp_path: Path) -> None:
    runs((181, 183))
    snapshot.save(tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "mlflow.db")) as copy:
        assert copy.execute("SELECT count(*) FROM model_versions").fetchone() == (2,)


def test_artefacts_elsewhere_are_copied_with_the_database(recipe: Recipe, runs: Runs, tmp_path: Path) -> None:
    runs((181, 183))
    (tmp_path / "mlruns").rename(tmp_path / "elsewhere")
    snapshot.relocate(tmp_path / "mlruns", tmp_path / "elsewhere", tmp_path / "mlflow.db")
    snapshot.save(tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("runs/*/served/model.tflite"))) == 2


@pytest.fixture
def elsewhere(recipe: Recipe, runs: Runs, tmp_path: Path) -> Path:
    """The folder of the artefacts of two versions, beside the workspace's; the second has a logged model."""
    runs((181, 183))
    (tmp_path / "mlruns").rename(tmp_path / "elsewhere")
    snapshot.relocate(tmp_path / "mlruns", tmp_path / "elsewhere", tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(use_store())
    run = client.get_run(client.get_model_version(recipe.registered_model, "2").run_id).info
    model = client.create_logged_model(run.experiment_id, "model", run.run_id)
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, 1)])
    (tmp_path / "model.keras").write_text("weights")
    client.log_model_artifact(model.model_id, str(tmp_path / "model.keras"))
    return tmp_path / "elsewhere"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_logged_models_elsewhere_are_copied(elsewhere: Path, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "copy")
    (copy,) = (tmp_path / "copy").glob("models/*/model.keras")
    assert copy.read_text() == "weights"


@pytest.mark.parametrize("name", ["served/model.tflite", "model.keras", "card.md"])
def test_each_file_that_the_store_has_lost_comes_back(elsewhere: Path, tmp_path: Path, name: str) -> None:
    before = contents(elsewhere)
    snapshot.save(tmp_path / "copy")
    for path in elsewhere.rglob(name):
        path.unlink()
    assert contents(elsewhere) != before
    assert snapshot.put_back(tmp_path / "copy") == []
    assert contents(elsewhere) == before


def test_a_file_that_the_store_has_is_not_replaced(elsewhere: Path, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "copy")
    for card in elsewhere.rglob("card.md"):
        card.write_text("of a later verdict")
    snapshot.put_back(tmp_path / "copy")
    assert {card.read_text() for card in elsewhere.rglob("card.md")} == {"of a later verdict"}


@pytest.mark.parametrize("folder", ["elsewhere", "mlruns"])
def test_a_version_without_its_model_is_named(recipe: Recipe, elsewhere: Path, tmp_path: Path, folder: str) -> None:
    snapshot.relocate(elsewhere, elsewhere.rename(tmp_path / folder), tmp_path / "mlflow.db")
    for path in (tmp_path / folder).rglob("served/*"):
        path.unlink()
    notes = snapshot.save(tmp_path / "copy")
    lost = [f"MLflow has lost the model of version {number} of {recipe.registered_model}" for number in (2, 1)]
    assert [note.partition(",")[0] for note in notes] == lost


def test_the_models_of_others_hide_no_version(elsewhere: Path, client: mlflow.MlflowClient, tmp_path: Path) -> None:
    for number in range(100):  # what the client gives at once
        client.create_registered_model(f"another-{number}")
    snapshot.save(tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("runs/*"))) == 2


def test_a_store_with_a_run_is_not_empty(client: mlflow.MlflowClient) -> None:
    assert snapshot.is_empty()
    client.create_run("0")
    assert not snapshot.is_empty()


def test_a_damaged_copy_is_found(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match=r"mlflow\.db is damaged"):
        snapshot.check(tmp_path / "mlflow.db")


def test_only_places_in_the_former_folder_move(store: Path, client: mlflow.MlflowClient) -> None:
    for name, place in (
        ("inside", "file:///old/mlruns/1"),
        ("plain", "/old/mlruns/0"),
        ("beside", "file:///old/mlruns2"),
    ):
        client.create_experiment(name, place)
    snapshot.relocate(Path("/old/mlruns"), Path("/new place/mlruns"), store / "mlflow.db")
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        rows = dict(database.execute("SELECT name, artifact_location FROM experiments WHERE name != 'Default'"))
    assert rows == {
        "inside": "file:///new%20place/mlruns/1",
        "plain": "/new place/mlruns/0",
        "beside": "file:///old/mlruns2",
    }


def test_a_missing_program_of_postgresql_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", POSTGRES)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match=r"pg_dump is not installed.*postgresql-client"):
        snapshot.copy_to(tmp_path / "copy")


def test_a_failure_of_postgresql_shows_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", POSTGRES)
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(StoreError, match=r"pg_dump failed for postgresql://127\.0\.0\.1:9/mlflow: ") as failure:
        snapshot.copy_to(tmp_path / "copy")
    assert "secret" not in str(failure.value)
