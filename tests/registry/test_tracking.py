"""MLflow runs, in a real SQLite store."""

import fcntl
import http.server
import multiprocessing
import os
import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.store.db.utils import _get_latest_schema_revision

from mobilenet_pipeline import tracking
from mobilenet_pipeline.config import Recipe

OLD = "451aebb31d03"  # the revision that conftest's store starts from


def run_of(client: mlflow.MlflowClient, recipe: Recipe) -> Any:
    """The newest run of the recipe's experiment."""
    experiment = client.get_experiment_by_name(recipe.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


def test_the_default_store_is_a_database_in_the_current_directory(store: Path) -> None:
    assert tracking.use_store() == f"sqlite:///{store}/mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_store_that_is_ready_is_opened_while_another_process_holds_its_lock(store: Path) -> None:
    tracking.use_store()
    with (store / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tracking.use_store() == f"sqlite:///{store}/mlflow.db"


def test_two_trainings_that_start_at_once_both_get_a_new_store(workspace: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit other tests' threads
    both = [spawn.Process(target=tracking.use_store) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]


def test_a_store_of_an_older_mlflow_is_migrated_and_a_copy_kept(migrated: Path) -> None:
    copy = migrated.with_name("mlflow.db.before-migration")
    assert (tracking._revision(copy), tracking._revision(migrated)) == (OLD, _get_latest_schema_revision())


def test_what_is_no_database_is_refused_with_its_path(workspace: Path) -> None:
    (workspace / "mlflow.db").write_text("not a database, " * 100)
    with pytest.raises(tracking.StoreError, match=r"mlflow\.db .*move the file away"):
        tracking.use_store()


def test_a_store_of_a_newer_mlflow_is_refused_with_its_path(store: Path) -> None:
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    with pytest.raises(tracking.StoreError, match=r"mlflow\.db .*newer MLflow"):
        tracking.use_store()


def test_a_dead_server_is_named_with_the_remedy_within_seconds(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(tracking.StoreAwayError, match=f"{uri}.*unset"):
        tracking.use_store()
    assert time.monotonic() - started < 8


def test_a_server_that_accepts_and_never_answers_is_given_up(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(tracking, "_PROBE_SECONDS", 1)
        with pytest.raises(tracking.StoreError, match=r"127\.0\.0\.1") as raised:
            tracking.use_store()
    assert "secret" not in str(raised.value)


def test_a_server_that_refuses_this_host_will_do_so_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(tracking.StoreError, match=r"answers 403.*--allowed-hosts") as raised:
            tracking.use_store()
        server.shutdown()
    assert not isinstance(raised.value, ConnectionError)


def test_a_run_carries_its_parameters_and_its_dataset(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    with tracking.candidate_run(recipe, "scratch", None, dataset):
        pass
    run = run_of(client, recipe)
    assert (run.info.run_name, run.info.status) == ("digits-scratch", "FINISHED")
    assert (run.data.params["alpha"], run.data.params["gate.accuracy_floor"]) == ("0.25", "0.85")
    used = run.inputs.dataset_inputs[0]
    assert (used.dataset.name, used.dataset.digest) == ("digits", dataset["digest"][:36])
    assert {tag.key: tag.value for tag in used.tags}["digest"] == run.data.tags["data_digest"] == dataset["digest"]


def test_a_run_says_which_commit_lock_file_and_flow_made_it(
    store: Path, client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "dvc.lock").write_text("stages: {ingest@digits: {outs: [{path: data/digits, md5: abc.dir}]}}")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-7")
    with tracking.candidate_run(recipe, "scratch", None, dataset):
        pass
    tags = run_of(client, recipe).data.tags
    assert (tags["data_version"], tags["flow_run"], len(tags["dvc_lock_sha256"])) == ("abc.dir", "flow-7", 64)


def test_epochs_are_readable_while_the_training_runs(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        for epoch in (1, 2):
            run.log_epoch(epoch, {"validation_accuracy": epoch / 4})
        history = client.get_metric_history(run.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]


def test_a_training_is_nested_under_its_flow(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    parent = tracking.parent_run(recipe, "flow-7")
    with tracking.candidate_run(recipe, "scratch", parent, dataset) as run:
        pass
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent


def test_ending_a_flow_ends_the_trainings_that_died_under_it(client: mlflow.MlflowClient, recipe: Recipe) -> None:
    parent = tracking.parent_run(recipe, "flow-7")
    orphan = client.create_run(tracking.experiment(recipe), tags={"mlflow.parentRunId": parent}).info.run_id
    tracking.end_run(parent, "FAILED")
    assert [client.get_run(run).info.status for run in (parent, orphan)] == ["FAILED", "KILLED"]


def test_a_training_that_raises_leaves_a_failed_run_with_the_reason(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="loss"), tracking.candidate_run(recipe, "scratch", None, dataset):
        raise ValueError("the loss is nan at step 3")
    run = run_of(client, recipe)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "ValueError: the loss is nan at step 3"


def test_a_store_that_goes_away_during_a_training_is_named_and_may_be_tried_again(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("Max retries exceeded")

    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
        with pytest.raises(tracking.StoreAwayError, match=r"at sqlite:.*failed \(Max retries exceeded\); .*run again"):
            run.log_epoch(1, {"train_loss": 1.0})


def test_ctrl_c_leaves_a_killed_run(client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.candidate_run(recipe, "scratch", None, dataset):
        raise KeyboardInterrupt
    assert run_of(client, recipe).info.status == "KILLED"


def test_sigterm_leaves_a_killed_run_and_the_handler_as_it_was(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, tracking.candidate_run(recipe, "scratch", None, dataset):
        signal.raise_signal(signal.SIGTERM)
    assert (raised.value.code, run_of(client, recipe).info.status) == (143, "KILLED")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_deleted_experiment_is_brought_back(client: mlflow.MlflowClient, recipe: Recipe) -> None:
    client.delete_experiment(tracking.experiment(recipe))
    run_id = tracking.parent_run(recipe)
    assert client.get_run(run_id).info.status == "RUNNING"


def test_the_machine_is_measured_while_it_trains(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        time.sleep(1)
    assert "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics


def test_figures_are_kept_under_figures(client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]) -> None:
    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        run.log_figure(b"\x89PNG", "learning_curves.png")
    assert [file.path for file in client.list_artifacts(run.run_id, "figures")] == ["figures/learning_curves.png"]


def test_the_logged_model_loads_with_stock_keras_and_no_pickles(
    recipe: Recipe, dataset: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    @keras.saving.register_keras_serializable("test")
    class Registered(keras.layers.Layer):
        """Something that MLflow would pickle beside the model."""

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    image = keras.Input((32, 32, 3), dtype="uint8")
    pixels = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax")(pixels))
    example = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8)
    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        uri = run.log_model(model, example)
    assert "test>Registered" in keras.saving.get_custom_objects()
    assert not list(store.rglob("*.cloudpickle"))
    loaded = mlflow.pyfunc.load_model(uri)
    assert (loaded.metadata.signature.inputs.inputs[0].type, loaded.predict(example).shape) == (
        np.dtype("uint8"),
        (2, 10),
    )
