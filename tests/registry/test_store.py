"""MLflow's store: SQLite files that are new, old, damaged or locked, and servers that do not answer."""

import fcntl
import http.server
import multiprocessing
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from mlflow.store.db.utils import _get_latest_schema_revision
from registry_fixtures import OLD_REVISION

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
        process.join(120)
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


def test_a_dead_server_is_named_with_the_remedy_within_seconds(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(StoreAwayError, match=f"{uri}.*unset"):
        use_store()
    assert time.monotonic() - started < 8


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


def test_a_server_that_refuses_this_host_is_not_tried_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreError, match=r"answers 403.*--allowed-hosts") as raised:
            use_store()
        server.shutdown()
    assert not isinstance(raised.value, ConnectionError)
