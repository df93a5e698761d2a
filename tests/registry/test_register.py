"""Candidates become versions, in a real SQLite store."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from registered import record_verdict, register, register_files, write_verdict
from registry_fixtures import Make

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs, versions
from mobilenet_pipeline.registry.documents import metrics_of
from mobilenet_pipeline.workspace.candidate import read_candidate

TAGS = {
    "recipe",
    "candidate",
    "test_accuracy",
    "verdict",
    "data_digest",
    "artefact_sha256",
    "preprocessing",
    "git_commit",
    "answering",
    "complete",
}


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


def test_other_limits_of_the_same_artefact_renew_its_version(recipe: Recipe, make: Make, tmp_path: Path) -> None:
    make("scratch", right=190)
    first = register(recipe, "scratch")
    metrics = Path("metrics/digits/scratch.json")
    metrics.write_text(metrics.read_text().replace('"stated_coverage": 0.95', '"stated_coverage": 0.99'))
    second = register(recipe, "scratch")
    metadata = json.loads((versions.fetch(second, tmp_path / "got") / "metadata.json").read_text())
    assert (first.version, second.version, metadata["thresholds"]["coverage"]) == ("1", "1", 0.99)
    assert versions.versions(recipe.registered_model)[0].answering["coverage"] == 0.99


def test_a_version_has_thresholds_and_metrics_of_its_answers(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, tmp_path: Path
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    metadata = json.loads((versions.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    metrics = client.get_run(version.run_id).data.metrics
    assert metadata["thresholds"] == {"coverage": 0.95, "probability": 0.0, "energy": 2.0}
    assert (metrics["test/coverage"], metrics["test/mean_set_size"]) == (1.0, 10.0)
    assert (metrics["test/unfamiliar_share"], metrics["unfamiliar_share/noise"]) == (0.04, 1.0)
    assert "100.00% coverage, 10.00 classes" in client.get_model_version(version.name, version.version).description


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
    assert [point.value for point in client.get_metric_history(run.info.run_id, "validation/accuracy")] == [0.5, 0.75]


def test_the_run_gets_test_metrics_figures_and_served_files(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    run_id = register_files(recipe, files, draw=lambda: {"confusion_matrix.png": b"\x89PNG"}).run_id
    data = client.get_run(run_id).data
    names = ("test/accuracy", "per_class/7", "validation/artefact_loss", "train/cpu_minutes")
    assert [data.metrics[name] for name in names] == [0.95, 0.9, 0.3, 1.5]
    assert (data.params["parameters"], data.params["multiply_adds"]) == ("220000", "1900000")
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
    logged = client.get_logged_model(model.model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": version.name, "version": "1"}]
    scores = {metric.key: metric for metric in logged.metrics}
    accuracy = scores["test/accuracy"]
    assert (accuracy.value, accuracy.dataset_name, accuracy.dataset_digest) == (0.95, "digits", dataset["digest"][:32])


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
    assert set(client.get_model_version(version.name, "1").tags) == TAGS
    assert {"card.md", "verdict.json"} <= {file.path for file in client.list_artifacts(version.run_id)}
    assert client.get_model_version(version.name, "1").description == "Card"


def test_the_run_gets_the_origin_that_it_lacks(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    client.set_tag(version.run_id, "flow_run", "flow-7")
    origin = {"flow_run": "flow-8", "data_version": "abc.dir", "dvc_lock_sha256": None}
    write_verdict(version, "{}", "# Card", False, origin, {})
    tags = client.get_run(version.run_id).data.tags
    assert (tags["flow_run"], tags["data_version"]) == ("flow-7", "abc.dir")


@pytest.mark.parametrize("name", [".", "..", "", "a/b", "maïs"])
def test_any_class_name_makes_a_metric_that_mlflow_takes(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, name: str
) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    files.metrics["per_class_accuracy"] = {name: 0.5}
    metrics = client.get_run(register_files(recipe, files).run_id).data.metrics
    assert [value for key, value in metrics.items() if key.startswith("per_class/")] == [0.5]


def test_class_names_that_mlflow_would_take_for_one_keep_their_metrics(recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    files.metrics["per_class_accuracy"] = {
        "a/b": 0.1,
        "a_b": 0.2,
        "a|b": 0.3,
        "a" * 300: 0.4,
        "a" * 299: 0.5,
        "c": None,
    }
    metrics = {key: value for key, value in metrics_of(files).items() if key.startswith("per_class/")}
    assert list(metrics) == [f"per_class/{key}" for key in ("a_b", "a_b:2", "a_b:3", "a" * 200, "a" * 200 + ":2")]


def test_a_thousand_classes_are_in_a_table_and_in_no_charts(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, tmp_path: Path
) -> None:
    names = [f"class {number} {'of a long name ' * 5}" for number in range(1000)]
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    shares = dict.fromkeys(names, 1.0)
    files.metrics.update(
        class_names=names, per_class_accuracy=shares, confusion_matrix=np.eye(1000, dtype=int).tolist()
    )
    many = recipe.model_copy(update={"data": recipe.data.model_copy(update={"class_names": names})})
    run_id = register_files(many, files).run_id
    run = client.get_run(run_id)
    assert run.data.params["data.class_names"].startswith("1,000 values, from class 0 of a long name")
    assert not any(key.startswith("per_class/") for key in run.data.metrics)
    kept = json.loads(Path(client.download_artifacts(run_id, "recipe.json", str(tmp_path))).read_text())
    assert kept["data"]["class_names"] == names
    table = Path(client.download_artifacts(run_id, "per_class.csv", str(tmp_path))).read_text().splitlines()
    assert (len(table), table[1].split(",")[1:3]) == (1001, ["1", "1"])


def test_a_model_renamed_in_mlflow_and_in_the_recipe_keeps_its_versions(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, tmp_path: Path
) -> None:
    make("scratch", right=190)
    register(recipe, "scratch")
    client.rename_registered_model(recipe.registered_model, "digits-net")
    version = register(recipe.model_copy(update={"registered_model": "digits-net"}), "scratch")
    metadata = json.loads((versions.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    assert (version.version, metadata["registered_model"]) == ("1", "digits-net")
