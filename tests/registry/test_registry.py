"""The model registry, in a real SQLite store."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mobilenet_pipeline import registry, tracking
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.provenance import ProvenanceError

Make = Callable[..., None]


def trained(recipe: Recipe, dataset: dict[str, Any]) -> str:
    """The id of a finished training's run."""
    with tracking.candidate_run(recipe, "scratch", None, dataset) as run:
        run.log_epoch(1, {"train_loss": 2.0})
    return run.run_id


def artefact_folder(client: mlflow.MlflowClient, version: registry.Version) -> Path:
    """Where the version's served artefacts lie on disk."""
    return Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / "served"


def test_a_candidate_becomes_a_version_of_the_run_that_trained_it(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = trained(recipe, dataset)
    make("scratch", right=190, run_id=run_id)
    version = registry.register(recipe, "scratch")
    assert (version.name, version.version, version.run_id) == ("digits-mobilenet", "1", run_id)
    assert (version.accuracy, version.data_digest) == (0.95, dataset["digest"])
    assert version.sha256 == hashlib.sha256(Path("models/digits/scratch/model.tflite").read_bytes()).hexdigest()


def test_registering_the_same_candidate_again_changes_nothing(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    first = registry.register(recipe, "scratch")
    assert registry.register(recipe, "scratch") == first
    assert len(registry.versions(first.name)) == 1
    assert len(client.search_runs([tracking.experiment(recipe)])) == 1


def test_a_training_that_the_store_does_not_know_gets_a_run_made_from_its_files(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190, run_id="f" * 32)
    run = client.get_run(registry.register(recipe, "scratch").run_id)
    assert (run.info.status, run.data.tags["training_run"], run.data.tags["git_commit"]) == (
        "FINISHED",
        "f" * 32,
        "c" * 40,
    )
    assert [point.value for point in client.get_metric_history(run.info.run_id, "validation_accuracy")] == [
        0.5,
        0.75,
    ]


def test_the_run_gets_the_test_metrics_the_figures_and_what_is_served(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    run_id = registry.register(recipe, "scratch", figures={"confusion_matrix.png": b"\x89PNG"}).run_id
    metrics = client.get_run(run_id).data.metrics
    found = metrics["test_accuracy"], metrics["test_accuracy_7"], metrics["artefact_validation_loss"]
    assert found == (0.95, 0.9, 0.3)
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/confusion_matrix.png"]
    served = {Path(file.path).name for file in client.list_artifacts(run_id, "served")}
    assert served == {"model.tflite", "metadata.json", "predictions.npz"}


def test_the_metadata_names_the_version_that_it_belongs_to(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    make("pretrained", right=195)
    registry.register(recipe, "scratch")
    version = registry.register(recipe, "pretrained")
    metadata = json.loads((registry.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    assert (metadata["version"], metadata["candidate"], metadata["run_id"]) == ("2", "pretrained", version.run_id)
    assert metadata["test"] == {"accuracy": 0.975, "loss": 0.3, "top3_accuracy": 0.99, "rows": 200}


def test_the_version_says_what_it_is_in_its_description(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    entry = client.get_model_version(version.name, version.version)
    assert entry.description.startswith("Not judged yet: ")
    assert "test accuracy 95.00%, loss 0.3000 on 200 images" in entry.description
    assert entry.tags["artefact_sha256"] == version.sha256


def test_a_logged_keras_model_is_the_source_of_its_version(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = trained(recipe, dataset)
    model = client.create_logged_model(tracking.experiment(recipe), name="model", source_run_id=run_id)
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
    make("scratch", right=190, run_id=run_id)
    version = registry.register(recipe, "scratch")
    assert client.get_model_version(version.name, version.version).source == f"models:/{model.model_id}"
    scores = {metric.key: metric.value for metric in client.get_logged_model(model.model_id).metrics}
    assert scores["test_accuracy"] == 0.95


def test_two_exports_of_one_training_do_not_overwrite_each_other(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make, dataset: dict[str, Any]
) -> None:
    run_id = trained(recipe, dataset)
    make("scratch", right=190, run_id=run_id, artefact=b"first export")
    first = registry.register(recipe, "scratch")
    make("scratch", right=190, run_id=run_id, artefact=b"second export")
    registry.register(recipe, "scratch")
    assert (registry.fetch(first, tmp_path / "got") / "model.tflite").read_bytes() == b"first export"


def test_a_registration_that_was_cut_short_is_completed_not_repeated(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("scratch", right=190)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            registry.register(recipe, "scratch")
    assert registry.versions(recipe.registered_model) == []
    version = registry.register(recipe, "scratch")
    assert version.version == "1"
    assert (registry.fetch(version, tmp_path / "got") / "model.tflite").exists()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_alias_moves_and_comes_off(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    registry.set_alias(version.name, "champion", version.version)
    assert registry.with_alias(version.name, "champion") == version
    registry.set_alias(version.name, "champion", None)
    assert registry.with_alias(version.name, "champion") is None


def test_a_model_that_was_never_registered_has_no_versions_and_no_champion(client: mlflow.MlflowClient) -> None:
    assert registry.versions("nobody's-model") == []
    assert registry.with_alias("nobody's-model", "champion") is None


def test_an_alias_on_a_version_of_someone_else_is_refused(client: mlflow.MlflowClient, recipe: Recipe) -> None:
    client.create_registered_model(recipe.registered_model)
    client.create_model_version(recipe.registered_model, "runs:/" + "a" * 32 + "/model")
    client.set_registered_model_alias(recipe.registered_model, "champion", "1")
    with pytest.raises(registry.RegistryError, match="version 1, was not registered by this pipeline"):
        registry.with_alias(recipe.registered_model, "champion")


def test_a_damaged_artefact_is_refused_with_both_hashes(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    (artefact_folder(client, version) / "model.tflite").write_bytes(b"other")
    with pytest.raises(
        ProvenanceError, match=rf"model\.tflite .*{hashlib.sha256(b'other').hexdigest()}.*{version.sha256}"
    ):
        registry.fetch(version, tmp_path / "got")
    assert not list((tmp_path / "got").iterdir())


def test_artefacts_that_are_gone_are_missed_by_their_place(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    shutil.rmtree(artefact_folder(client, version))
    with pytest.raises(registry.RegistryError, match=r"version 1 of digits-mobilenet has no artefacts at .*served"):
        registry.fetch(version, tmp_path / "got")


def test_an_artefact_that_is_not_the_exported_one_is_not_registered(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    Path("models/digits/scratch/model.tflite").write_bytes(b"other")
    with pytest.raises(ProvenanceError, match=r"models/digits/scratch/model\.tflite is damaged"):
        registry.register(recipe, "scratch")


def test_a_candidate_of_other_data_than_the_dataset_is_not_registered(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    make("pretrained", right=190, digest="e" * 64)
    with pytest.raises(
        ProvenanceError, match=r"dataset\.json is of data e+, .*scratch\.json of d+; .* --recipe digits makes"
    ):
        registry.register(recipe, "scratch")


def test_a_missing_file_is_named(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    Path("models/digits/scratch/predictions.npz").unlink()
    with pytest.raises(ProvenanceError, match=r"predictions\.npz does not exist"):
        registry.register(recipe, "scratch")


def test_a_verdict_is_written_to_the_version_and_its_run(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    registry.record_verdict(
        version, {"promote": True, "winner": "scratch", "reason": "It is the first."}, "# Card", {}, {}
    )
    assert registry.versions(version.name) == [dataclasses.replace(version, verdict="promoted")]
    assert client.get_model_version(version.name, "1").tags["verdict_reason"] == "It is the first."
    assert {"card.md", "verdict.json"} <= {file.path for file in client.list_artifacts(version.run_id)}
    assert client.get_model_version(version.name, "1").description == "Card"


def test_what_is_fetched_says_how_the_gate_judged_it(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = registry.register(recipe, "scratch")
    registry.record_verdict(
        version, {"promote": False, "winner": "scratch", "reason": "It is no better."}, "# Card", {}, {}
    )
    metadata = json.loads((registry.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    assert metadata["verdict"] == {"promoted": False, "reason": "It is no better."}
