"""Artefacts and runs that the registry has lost, against a real registry."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from registry_fixtures import Make, Packaging, Run, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.evaluation.predictions import read_arrays
from mobilenet_pipeline.registry import aliases, versions
from mobilenet_pipeline.registry.versions import ArtefactsLost, number_of
from mobilenet_pipeline.release import evidence, judging, promotion, restore, review, trace
from mobilenet_pipeline.workspace import files, ledger

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def champions(runs: Runs) -> None:
    """Version 2 was promoted, then version 4; the workspace has the files of versions 3 and 4."""
    runs((181, 183), (182, 195))


def place(client: mlflow.MlflowClient, recipe: Recipe, number: str) -> Path:
    """Return the folder of the version's artefacts in the store."""
    run = client.get_run(versions.find(recipe.registered_model, number).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://"))


def copy_to_bento_store(client: mlflow.MlflowClient, recipe: Recipe, number: str) -> None:
    folder = Path(".bentoml/models/digits-mobilenet") / f"{number}-copy"
    folder.mkdir(parents=True)
    for name in ("model.tflite", "metadata.json"):
        shutil.copyfile(place(client, recipe, number) / "served" / name, folder / name)


def delete_run(client: mlflow.MlflowClient, recipe: Recipe, number: str) -> None:
    """Delete the version's run for good, as the UI and `mlflow gc` do."""
    folder, run_id = place(client, recipe, number), versions.find(recipe.registered_model, number).run_id
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)
    shutil.rmtree(folder)


def champion(recipe: Recipe) -> str | None:
    return number_of(aliases.with_alias(recipe.registered_model, "champion"))


def test_a_lost_artefact_is_restored_from_the_workspace(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    shutil.rmtree(place(client, recipe, "4") / "served")
    assert promotion.reconcile(recipe) == ["MLflow had lost the artefact of version 4; it is restored."]
    restored = {path.name for path in (place(client, recipe, "4") / "served").iterdir()}
    assert restored == {"model.tflite", "metadata.json", "predictions.npz"}


def test_a_lost_artefact_is_restored_from_a_bento(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    copy_to_bento_store(client, recipe, "2")
    shutil.rmtree(place(client, recipe, "2") / "served")
    folder = restore.fetch(recipe, versions.find(recipe.registered_model, "2"), tmp_path / "2")
    assert json.loads((folder / "metadata.json").read_text())["version"] == "2"
    assert (place(client, recipe, "2") / "served" / "model.tflite").read_bytes() == (
        folder / "model.tflite"
    ).read_bytes()


def test_a_damaged_artefact_is_restored(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    damaged = place(client, recipe, "4") / "served" / "model.tflite"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"another")
    restore.fetch(recipe, versions.find(recipe.registered_model, "4"), Path("restored"))
    assert damaged.read_bytes() == whole


def test_a_champion_without_predictions_is_evaluated_again(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_to_bento_store(client, recipe, "4")
    shutil.rmtree(place(client, recipe, "4") / "served")
    make("pretrained", right=190)
    arrays = read_arrays(Path("models/digits/scratch/predictions.npz"))
    document = files.read_json(Path("metrics/digits/scratch.json"))
    for name, answer in (("open_dataset", None), ("split_rows", (None, None)), ("evaluate", (document, arrays))):
        monkeypatch.setattr(evidence, name, lambda *_, answer=answer: answer)
    assert judging.judge(recipe).verdict.champion_measured_again
    assert ledger.count_reads("d" * 64) == 1


def test_a_lost_artefact_without_a_copy_is_named(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    shutil.rmtree(place(client, recipe, "4") / "served")
    shutil.rmtree("models")
    (sentence,) = promotion.reconcile(recipe)
    assert sentence.startswith("The artefacts of digits-mobilenet version 4 are lost: ")


def test_the_status_shows_a_lost_artefact(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    shutil.rmtree(place(client, recipe, "4") / "served")
    assert "MLflow has no artefact of version 4 any more" in str(promotion.status(recipe).drift)


def test_a_deleted_run_is_named_by_trace_and_review(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    delete_run(client, recipe, "4")
    links = {link.name: link for link in trace.trace(recipe, "4")}
    assert [links[name].holds for name in ("artefact", "run", "verdict")] == [False, False, False]
    assert links["run"].sentence.endswith("of version 4 was deleted in MLflow")
    with pytest.raises(review.ReviewError, match="of version 4 was deleted in MLflow, and the card with it"):
        review.show(recipe, "4")


def test_a_rollback_to_a_version_without_a_run_changes_nothing(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    delete_run(client, recipe, "2")
    with pytest.raises(ArtefactsLost, match="of version 2 was deleted in MLflow"):
        review.rollback(recipe, "2", "test", "ann")
    assert (champion(recipe), versions.find(recipe.registered_model, "4").withdrawn) == ("4", None)


def test_a_rollback_to_a_version_without_a_run_uses_the_bento_s_copy(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    copy_to_bento_store(client, recipe, "2")
    delete_run(client, recipe, "2")
    review.rollback(recipe, "2", "test", "ann")
    assert champion(recipe) == "2"


def test_a_deleted_run_of_the_challenger_stops_no_run(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient, make: Make, run: Run, packaging: Packaging
) -> None:
    challenger = number_of(aliases.with_alias(recipe.registered_model, "challenger"))
    assert challenger is not None
    delete_run(client, recipe, challenger)
    shutil.rmtree("models")
    make("scratch", right=150)
    make("pretrained", right=151)
    run()
    assert champion(recipe) == "4"
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions["challenger"] != challenger


def test_the_candidate_of_a_deleted_run_becomes_a_new_version(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    delete_run(client, recipe, "3")
    assert judging.judge(recipe).verdict.versions == {"scratch": "5", "pretrained": "4"}
