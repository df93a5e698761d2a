"""Registered versions and their artefacts, in a real SQLite store."""

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import pytest
from registered import record_verdict, register
from registry_fixtures import Make, artefacts_away

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import ArtefactError
from mobilenet_pipeline.registry import versions
from mobilenet_pipeline.registry.store import StoreAwayError


def artefact_folder(client: mlflow.MlflowClient, version: versions.Version) -> Path:
    """Return where the version's served artefacts are on disk."""
    return Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / "served"


def test_the_metadata_names_the_version_that_it_belongs_to(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    make("pretrained", right=195)
    register(recipe, "scratch")
    version = register(recipe, "pretrained")
    metadata = json.loads((versions.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    assert (metadata["version"], metadata["candidate"], metadata["run_id"]) == ("2", "pretrained", version.run_id)
    assert metadata["test"] == {"accuracy": 0.975, "loss": 0.3, "top3_accuracy": 0.99, "rows": 200}


def test_a_damaged_artefact_is_refused_with_both_hashes(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    (artefact_folder(client, version) / "model.tflite").write_bytes(b"other")
    with pytest.raises(
        ArtefactError, match=rf"model\.tflite .*{hashlib.sha256(b'other').hexdigest()}.*{version.sha256}"
    ):
        versions.fetch(version, tmp_path / "got")
    assert not list((tmp_path / "got").iterdir())


def test_missing_artefacts_are_reported_with_their_place(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    shutil.rmtree(artefact_folder(client, version))
    with pytest.raises(versions.RegistryError, match=r"the artefacts of digits-mobilenet version 1 are lost: .*served"):
        versions.fetch(version, tmp_path / "got")


def test_a_store_that_is_away_has_lost_nothing(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    artefacts_away(monkeypatch)
    with pytest.raises(StoreAwayError, match="does not answer"):
        versions.is_stored(version)
    with pytest.raises(StoreAwayError, match="does not answer"):
        versions.fetch(version, tmp_path / "got")
    with pytest.raises(StoreAwayError, match="does not answer"):
        versions.read_artefact(version, "card.md")


def test_fetched_metadata_has_the_verdict(
    tmp_path: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    record_verdict(version, "It is no better.", promoted=False)
    metadata = json.loads((versions.fetch(version, tmp_path / "got") / "metadata.json").read_text())
    assert metadata["verdict"] == {"promoted": False, "reason": "It is no better."}


@pytest.mark.parametrize("number", ["7", "1_0", " 1", "01", "-1", "9" * 30, "one", ""])
def test_a_number_of_no_version_is_refused_with_those_that_there_are(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, number: str
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    with pytest.raises(versions.RegistryError, match=f"has no version {number}; there are: 1$"):
        versions.find(version.name, number)


def test_an_error_names_the_newest_of_many_versions(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    tags = versions.tags_of_version(version)
    for _ in range(versions.LISTED):
        client.create_model_version(version.name, "runs:/r/served", version.run_id, tags=tags)
    with pytest.raises(versions.RegistryError, match=r"there are: 21, 20, .*, 2 and 1 older ones$"):
        versions.find(version.name, "99")


def test_a_version_is_found_without_a_list_of_all(
    client: mlflow.MlflowClient, recipe: Recipe, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    monkeypatch.setattr(versions, "entries_of", None)
    assert versions.find(version.name, "1") == version
