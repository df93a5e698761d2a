"""MLflow's store: SQLite files that are new, old, damaged or locked, and servers that do not answer."""

import fcntl
import http.server
import multiprocessing
import os
import socket
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_latest_schema_revision
from registry_fixtures import OLD_REVISION

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.registry import store as mlflow_store
from mobilenet_pipeline.registry.store import StoreAwayError, StoreError, use_store


def test_the_default_store_is_a_database_in_the_current_directory(store: Path) -> None:
    assert use_store() == f"sqlite:///{store}/mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_ready_store_opens_while_another_process_holds_its_lock(store: Path) -> None:
    use_store()
    with (store / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert use_store() == f"sqlite:///{store}/mlflow.db"


def test_two_trainings_that_start_at_once_both_get_a_new_store(workspace: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit other tests' threads
    processes = [spawn.Process(target=use_store) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]


def test_an_older_store_is_migrated_and_copied(migrated: Path) -> None:
    copy = migrated.with_name("mlflow.db.before-migration")
    revisions = mlflow_store._revision(copy), mlflow_store._revision(migrated)
    assert revisions == (OLD_REVISION, _get_latest_schema_revision())


def test_a_file_that_is_no_database_is_refused_with_its_path(workspace: Path) -> None:
    (workspace / "mlflow.db").write_text("not a database, " * 100)
    with pytest.raises(StoreError, match=r"mlflow\.db .*move the file away"):
        use_store()


def test_a_store_of_a_newer_mlflow_is_refused_with_its_path(store: Path) -> None:
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    with pytest.raises(StoreError, match=r"mlflow\.db .*newer MLflow"):
        use_store()


def test_a_dead_server_is_named_with_the_remedy(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreAwayError, match=f"{uri}.*start that server, or correct"):
        use_store()


def test_a_server_that_never_answers_is_named_without_its_password(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(mlflow_store, "_PROBE_SECONDS", 1)
        with pytest.raises(StoreError, match=r"127\.0\.0\.1") as raised:
            use_store()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "message", "passes"),
    [
        (403, r"answers 403.*--allowed-hosts", False),
        (404, r"answers 404, unlike an MLflow server", False),
        (503, r"answers 503; start its database", True),
    ],
)
def test_a_server_without_an_answer_may_be_tried_again_if_its_fault_can_pass(
    status: int, message: str, passes: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreError, match=message) as raised:
            use_store()
        server.shutdown()
    assert isinstance(raised.value, StoreAwayError) == passes


def test_a_path_is_never_read_as_a_uri(odd_workspace: Path, recipe: Recipe) -> None:
    run_id = MlflowClient(use_store()).create_run(runs.experiment(recipe)).info.run_id
    runs.log_file(run_id, b"text", "card.md")
    assert list(odd_workspace.rglob("card.md")) == [odd_workspace / "mlruns" / "digits" / run_id / "artifacts/card.md"]
    assert {path.name for path in odd_workspace.iterdir()} == {"mlflow.db", "mlruns"}
    assert list(odd_workspace.parent.iterdir()) == [odd_workspace]


def test_an_artefact_store_without_its_client_library_is_found_at_once(
    store: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    MlflowClient(use_store()).create_experiment(recipe.name, "s3://bucket/runs")
    with pytest.raises(StoreError, match=r"s3://bucket/runs .*pip install boto3`, or .*--serve-artifacts"):
        runs.check_store(recipe)


def test_an_artefact_store_that_cannot_be_written_is_found_at_once(store: Path, recipe: Recipe) -> None:
    (store / "mlruns").write_text("a file, not a folder")
    with pytest.raises(StoreError, match=r"cannot write to its artefact store .*mlruns/digits"):
        runs.check_store(recipe)


def test_the_check_of_the_artefact_store_leaves_no_file(store: Path, recipe: Recipe) -> None:
    runs.check_store(recipe)
    assert [path for path in (store / "mlruns").rglob("*") if path.is_file()] == []


def test_a_registry_that_does_not_answer_is_found_at_once(
    store: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"registry http://127\.0\.0\.1:9 .*unset"):
        runs.check_store(recipe)
