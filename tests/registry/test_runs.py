"""MLflow runs, in a real SQLite store."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.registry.store import StoreAwayError


def newest_run(client: mlflow.MlflowClient, recipe: Recipe) -> Any:
    """Return the newest run of the recipe's experiment."""
    experiment = client.get_experiment_by_name(recipe.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


def log_unfinished_model(client: mlflow.MlflowClient, recipe: Recipe, run_id: str) -> str:
    """Leave what MLflow leaves of a model while it is written; return the model's id."""
    model = client.create_logged_model(runs.experiment(recipe), name="model", source_run_id=run_id)
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def test_a_run_has_its_parameters_and_its_dataset(
    store: Path, client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    (store / "data" / "digits").mkdir(parents=True)
    with runs.candidate_run(recipe, "scratch", None, dataset):
        pass
    run = newest_run(client, recipe)
    assert re.fullmatch(r"scratch · digits · \d{4}-\d\d-\d\d \d\d:\d\d", run.info.run_name)
    assert (run.info.status, run.data.tags["mlflow.source.name"]) == ("FINISHED", "dvc repro train@digits-scratch")
    assert (run.data.params["alpha"], run.data.params["gate.accuracy_floor"]) == ("0.25", "0.85")
    used = run.inputs.dataset_inputs[0]
    assert (used.dataset.name, used.dataset.digest) == ("digits", dataset["digest"][:32])
    assert {tag.key: tag.value for tag in used.tags}["digest"] == run.data.tags["data_digest"] == dataset["digest"]
    assert mlflow.data.get_source(used).load() == str(store / "data" / "digits")


def test_a_run_has_its_commit_lock_file_and_flow(
    store: Path, client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "dvc.lock").write_text("stages: {ingest@digits: {outs: [{path: data/digits, md5: abc.dir}]}}")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-7")
    with runs.candidate_run(recipe, "scratch", None, dataset):
        pass
    tags = newest_run(client, recipe).data.tags
    assert (tags["data_version"], tags["flow_run"], len(tags["dvc_lock_sha256"])) == ("abc.dir", "flow-7", 64)


def test_epochs_are_readable_while_the_training_runs(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
        for epoch in (1, 2):
            run.log_epoch(epoch, {"validation_accuracy": epoch / 4, "seconds": 2.0})
        history = client.get_metric_history(run.run_id, "validation/accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]
    assert set(client.get_run(run.run_id).data.metrics) == {"validation/accuracy", "train/seconds"}


def test_a_training_is_nested_under_its_flow(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    parent = runs.parent_run(recipe, dataset, "flow-7")
    with runs.candidate_run(recipe, "scratch", parent, dataset) as run:
        pass
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent


BESIDE = """
import json, sys, time
from pathlib import Path
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.registry import runs
name, other, parent, dataset = sys.argv[1:]
with runs.candidate_run(load_recipe("digits"), name, parent, json.loads(dataset)) as run:
    Path(f"{name}.txt").touch()
    while not Path(f"{other}.txt").exists():
        time.sleep(0.05)
    for epoch in range(1, 6):
        run.log_epoch(epoch, {"seconds": 2.0})
"""
"""A training that logs while another one is open, too."""


def test_two_trainings_are_nested_under_their_flow_at_the_same_time(
    store: Path, client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    parent, names = runs.parent_run(recipe, dataset, "flow-7"), ("scratch", "pretrained")
    commands = [[sys.executable, "-c", BESIDE, *pair, parent, json.dumps(dataset)] for pair in (names, names[::-1])]
    for training in [subprocess.Popen(command, cwd=store) for command in commands]:
        assert training.wait() == 0
    found = client.search_runs([runs.experiment(recipe)], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {(run.data.tags["candidate"], run.info.status) for run in found} == {(name, "FINISHED") for name in names}
    assert [len(client.get_metric_history(run.info.run_id, "train/seconds")) for run in found] == [5, 5]


def test_a_flow_s_run_has_dataset_source_and_settings(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    run = client.get_run(runs.parent_run(recipe, dataset))
    assert run.data.tags["mlflow.source.name"] == "mobilenet-pipeline run --recipe digits"
    assert (run.data.params["gate.accuracy_floor"], run.inputs.dataset_inputs[0].dataset.name) == ("0.85", "digits")


def test_a_flow_s_run_shows_verdict_and_champion(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    parent = runs.parent_run(recipe, dataset)
    runs.conclude(parent, "promoted", "It is the first.", {"champion": "2"}, {"test/accuracy": 0.9})
    data = client.get_run(parent).data
    assert (data.tags["verdict"], data.tags["champion"], data.metrics) == ("promoted", "2", {"test/accuracy": 0.9})
    assert data.tags["mlflow.note.content"] == "It is the first."


def test_ending_a_flow_ends_its_dead_trainings(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    parent = runs.parent_run(recipe, dataset, "flow-7")
    orphan = client.create_run(runs.experiment(recipe), tags={"mlflow.parentRunId": parent}).info.run_id
    model = log_unfinished_model(client, recipe, orphan)
    runs.end_run(parent, "FAILED")
    assert [client.get_run(run).info.status for run in (parent, orphan)] == ["FAILED", "KILLED"]
    assert client.get_logged_model(model).status == "FAILED"


def test_the_next_flow_ends_the_killed_runs_of_its_workspace_and_those_whose_flow_run_is_over(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    here = runs.parent_run(recipe, dataset)
    crashed, active = (
        client.create_run(runs.experiment(recipe), tags={"workspace": "other:/place", "flow_run": flow_run}).info.run_id
        for flow_run in ("crashed", "active")
    )
    runs.close_dead(recipe, is_over=lambda flow_run: flow_run == "crashed")
    assert [client.get_run(run).info.status for run in (here, crashed, active)] == ["KILLED", "KILLED", "RUNNING"]


def test_a_run_elsewhere_is_dead_a_day_after_its_last_metric(client: mlflow.MlflowClient, recipe: Recipe) -> None:
    long_ago, now = int((time.time() - 2 * 86_400) * 1000), int(time.time() * 1000)
    silent, measured = (
        client.create_run(runs.experiment(recipe), start_time=long_ago, tags={"workspace": "other:/place"}).info.run_id
        for _ in range(2)
    )
    client.log_metric(measured, "system/cpu", 1.0, timestamp=now)
    runs.close_dead(recipe, is_over=lambda flow_run: False)
    assert [client.get_run(run).info.status for run in (silent, measured)] == ["KILLED", "RUNNING"]


def test_an_outer_run_of_mlflow_is_left_alone(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = client.create_run("0").info.run_id
    for name, value in {"RUN_ID": outer, "EXPERIMENT_ID": "0", "ENABLE_ASYNC_LOGGING": "true"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    with mlflow.start_run(), runs.candidate_run(recipe, "scratch", None, dataset) as run:
        run.log_epoch(1, {"train_loss": 1.0})
        assert client.get_run(run.run_id).data.metrics["train/loss"] == 1.0
    data = client.get_run(outer).data
    assert (data.metrics, data.params, client.get_run(run.run_id).info.experiment_id != "0") == ({}, {}, True)


def test_a_training_killed_while_it_logs_its_model_leaves_none_pending(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    models = []
    with suppress(SystemExit), runs.candidate_run(recipe, "scratch", None, dataset) as run:
        models.append(log_unfinished_model(client, recipe, run.run_id))
        signal.raise_signal(signal.SIGTERM)
    assert [client.get_logged_model(model).status for model in models] == ["FAILED"]


def test_a_training_that_raises_leaves_a_failed_run_with_the_reason(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="loss"), runs.candidate_run(recipe, "scratch", None, dataset):
        raise ValueError("the loss is nan at step 3")
    run = newest_run(client, recipe)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "ValueError: the loss is nan at step 3"


def test_a_store_that_fails_during_a_training_may_be_tried_again(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("Max retries exceeded", TEMPORARILY_UNAVAILABLE)

    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
        with pytest.raises(StoreAwayError, match=r"at sqlite:.*answer \(Max retries exceeded\); .*run again"):
            run.log_epoch(1, {"train_loss": 1.0})


def test_ctrl_c_leaves_a_killed_run(client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt), runs.candidate_run(recipe, "scratch", None, dataset):
        raise KeyboardInterrupt
    assert newest_run(client, recipe).info.status == "KILLED"


def test_sigterm_leaves_a_killed_run_and_the_former_handler(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, runs.candidate_run(recipe, "scratch", None, dataset):
        signal.raise_signal(signal.SIGTERM)
    assert (raised.value.code, newest_run(client, recipe).info.status) == (143, "KILLED")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_deleted_experiment_is_restored(client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]) -> None:
    client.delete_experiment(runs.experiment(recipe))
    run_id = runs.parent_run(recipe, dataset)
    assert client.get_run(run_id).info.status == "RUNNING"


def test_the_machine_is_measured_while_it_trains(
    client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
        time.sleep(1)
    assert "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics


def test_figures_are_logged_under_figures(client: mlflow.MlflowClient, recipe: Recipe, dataset: dict[str, Any]) -> None:
    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
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
    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
        uri = run.log_model(model, example, dataset["class_names"], step=108)
    assert "test>Registered" in keras.saving.get_custom_objects()
    assert not list(store.rglob("*.cloudpickle"))
    loaded = mlflow.pyfunc.load_model(uri)
    assert loaded.metadata.metadata["class_names"] == dataset["class_names"]
    logged = mlflow.get_logged_model(loaded.metadata.model_id)
    assert (logged.metrics or [], logged.tags["mlflow.source.name"]) == ([], "dvc repro train@digits-scratch")
    assert (loaded.metadata.signature.inputs.inputs[0].type, loaded.predict(example).shape) == (
        np.dtype("uint8"),
        (2, 10),
    )
