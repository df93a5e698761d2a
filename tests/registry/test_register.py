"""Candidates become versions, in a real SQLite store."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import mlflow
import pytest
from registered import record_verdict, register, register_files
from registry_fixtures import Make

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs, versions
from mobilenet_pipeline.workspace.candidate import read_candidate


def train(recipe: Recipe, dataset: dict[str, Any]) -> str:
    """Return the id of a finished training's run."""
    with runs.candidate_run(recipe, "scratch", None, dataset) as run:
        run.log_epoch(1, {"train_loss": 2.0})
    return run.run_id


def test_a_candidate_becomes_a_version_of_the_run_that_trained_it(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = train(recipe, dataset)
    make("scratch", right=190, run_id=run_id)
    version = register(recipe, "scratch")
    assert (version.name, version.version, version.run_id) == ("digits-mobilenet", "1", run_id)
    assert (version.accuracy, version.data_digest) == (0.95, dataset["digest"])
    assert version.sha256 == hashlib.sha256(Path("models/digits/scratch/model.tflite").read_bytes()).hexdigest()


def test_registering_the_same_candidate_again_changes_nothing(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    first = register(recipe, "scratch")
    assert register(recipe, "scratch") == first
    assert len(versions.versions(first.name)) == 1
    assert len(client.search_runs([runs.experiment(recipe)])) == 1


def test_a_registered_candidate_is_not_drawn_again(store: Path, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    version = register_files(recipe, files)
    assert register_files(recipe, files, draw=lambda: pytest.fail("drawn")) == version


def test_an_unknown_training_gets_a_run_made_from_its_files(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190, run_id="f" * 32)
    run = client.get_run(register(recipe, "scratch").run_id)
    assert (run.info.status, run.data.tags["training_run"], run.data.tags["git_commit"]) == (
        "FINISHED",
        "f" * 32,
        "c" * 40,
    )
    assert [point.value for point in client.get_metric_history(run.info.run_id, "validation_accuracy")] == [0.5, 0.75]


def test_the_run_gets_test_metrics_figures_and_served_files(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    run_id = register_files(recipe, files, draw=lambda: {"confusion_matrix.png": b"\x89PNG"}).run_id
    metrics = client.get_run(run_id).data.metrics
    assert (metrics["test_accuracy"], metrics["test_accuracy_7"], metrics["artefact_validation_loss"]) == (
        0.95,
        0.9,
        0.3,
    )
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/confusion_matrix.png"]
    served = {Path(file.path).name for file in client.list_artifacts(run_id, "served")}
    assert served == {"model.tflite", "metadata.json", "predictions.npz"}


def test_an_unjudged_version_is_described(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    entry = client.get_model_version(version.name, version.version)
    assert entry.description.startswith("Not judged yet: ")
    assert "test accuracy 95.00%, loss 0.3000 on 200 images" in entry.description
    assert entry.tags["artefact_sha256"] == version.sha256


def test_a_logged_keras_model_is_the_source_of_its_version(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = train(recipe, dataset)
    model = client.create_logged_model(runs.experiment(recipe), name="model", source_run_id=run_id)
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
    make("scratch", right=190, run_id=run_id)
    version = register(recipe, "scratch")
    assert client.get_model_version(version.name, version.version).source == f"models:/{model.model_id}"
    scores = {metric.key: metric.value for metric in client.get_logged_model(model.model_id).metrics}
    assert scores["test_accuracy"] == 0.95


def test_two_exports_of_one_training_do_not_overwrite_each_other(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = train(recipe, dataset)
    make("scratch", right=190, run_id=run_id, artefact=b"first export")
    first = register(recipe, "scratch")
    make("scratch", right=190, run_id=run_id, artefact=b"second export")
    register(recipe, "scratch")
    assert (versions.fetch(first, tmp_path / "got") / "model.tflite").read_bytes() == b"first export"


def test_an_interrupted_registration_is_completed_not_repeated(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    make("scratch", right=190)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(recipe, "scratch")
    assert versions.versions(recipe.registered_model) == []
    version = register(recipe, "scratch")
    assert version.version == "1"
    assert (versions.fetch(version, tmp_path / "got") / "model.tflite").exists()


def test_a_verdict_is_written_to_the_version_and_its_run(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    record_verdict(version, "It is the first.", promoted=True)
    assert versions.versions(version.name) == [dataclasses.replace(version, verdict="promoted")]
    assert client.get_model_version(version.name, "1").tags["verdict_reason"] == "It is the first."
    assert {"card.md", "verdict.json"} <= {file.path for file in client.list_artifacts(version.run_id)}
    assert client.get_model_version(version.name, "1").description == "Card"
