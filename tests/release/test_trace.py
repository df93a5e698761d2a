"""From an answer of the API to the version that gave it, and from there back to its data."""

import json
import subprocess
from pathlib import Path

import mlflow
import numpy as np
import pytest
from registry_fixtures import DIGEST, Make, Run, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import identity, versions
from mobilenet_pipeline.release import judging, review, trace
from mobilenet_pipeline.workspace import files, paths

ROOT = Path(__file__).resolve().parents[2]
ANSWER = {"class": "3", "confidence": 0.9, "model_name": "digits-mobilenet", "model_version": "7"}


@pytest.fixture
def champions(runs: Runs) -> None:
    """Version 2 was promoted, then version 4."""
    runs((181, 183), (182, 195))


def links_of(recipe: Recipe, number: str) -> dict[str, trace.Link]:
    return {link.name: link for link in trace.trace(recipe, number)}


def artefacts_of(client: mlflow.MlflowClient, recipe: Recipe, number: str) -> Path:
    """Return the folder of the artefacts of the version's run."""
    version = versions.find(recipe.registered_model, number)
    return Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))


def test_a_commit_with_uncommitted_changes_cannot_be_checked() -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no Git repository, so it has no commit")
    commit = done.stdout.strip()
    assert [trace._commit(commit, {"git_dirty": dirty}, ROOT).holds for dirty in ("false", "true")] == [True, None]


def test_an_answer_names_the_version_that_gave_it(recipe: Recipe) -> None:
    assert trace.version_in(json.dumps(ANSWER), recipe, "answer.json") == "7"


def test_an_answer_of_another_model_is_refused(recipe: Recipe) -> None:
    other = ANSWER | {"model_name": "cifar10-mobilenet"}
    expected = r"answer\.json is an answer of cifar10-mobilenet, recipe digits has digits-mobilenet; give that model's"
    with pytest.raises(trace.AnswerError, match=expected):
        trace.version_in(json.dumps(other), recipe, "answer.json")


@pytest.mark.parametrize("text", ["", "<html>", "{", "\x00"])
def test_text_that_is_not_json_is_refused(text: str, recipe: Recipe) -> None:
    with pytest.raises(trace.AnswerError, match=r"answer\.json is not JSON; save what /predict answers"):
        trace.version_in(text, recipe, "answer.json")


@pytest.mark.parametrize(
    "document", [[], "7", 7, None, {}, {"model_name": "digits-mobilenet"}, ANSWER | {"model_version": 7}]
)
def test_json_that_is_no_answer_is_refused(document: object, recipe: Recipe) -> None:
    with pytest.raises(trace.AnswerError, match=r"answer\.json has no model_name and model_version; save what"):
        trace.version_in(json.dumps(document), recipe, "answer.json")


def test_every_link_back_to_the_data_holds(recipe: Recipe, champions: None) -> None:
    np.save(paths.data_folder(recipe) / "images.npy", np.zeros((200, 32, 32, 3), np.uint8))
    np.save(paths.data_folder(recipe) / "labels.npy", (np.arange(200) % 10).astype(np.uint8))
    validation = {"success": True, "data_digest": DIGEST, "expectations": []}
    files.write_json(paths.report_folder(recipe) / "validation.json", validation)
    links = links_of(recipe, "4")
    assert {name for name, link in links.items() if link.holds} == {*links} - {"commit", "data"}
    assert "lacks manifest.parquet" in links["data"].sentence  # made-up files
    assert "promoted" in links["history"].sentence
    assert links["commit"].holds is None  # this workspace has no such commit


def test_a_changed_verdict_is_found(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    place = artefacts_of(client, recipe, "4") / "verdict.json"
    place.write_text(place.read_text().replace('"accuracy": 0.975', '"accuracy": 0.985'))
    link = links_of(recipe, "4")["verdict"]
    assert link.holds is False
    assert link.sentence.startswith("verdict.json was changed: its SHA-256 is ")


def test_a_verdict_that_is_no_json_is_found(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    (artefacts_of(client, recipe, "4") / "verdict.json").write_text("{")
    assert links_of(recipe, "4")["verdict"].holds is False


def test_a_verdict_that_was_recalled_before_its_promotion_holds(make: Make, recipe: Recipe, run: Run) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(recipe)
    assert "pretrained is promoted" in run()
    assert links_of(recipe, "2")["verdict"].holds is True


def test_a_run_of_other_data_is_found(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    client.set_tag(versions.find(recipe.registered_model, "4").run_id, "data_digest", "e" * 64)
    assert links_of(recipe, "4")["run"].holds is False


def test_a_changed_artefact_is_found(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    (artefacts_of(client, recipe, "4") / "served" / "model.tflite").write_bytes(b"another")
    link = links_of(recipe, "4")["artefact"]
    assert link.holds is False
    assert "SHA-256" in link.sentence


def test_a_changed_history_is_found(recipe: Recipe, champions: None) -> None:
    path = paths.history_path(recipe)
    path.write_text(path.read_text().replace('"before": null', '"before": "1"'))
    link = links_of(recipe, "4")["history"]
    assert (link.holds, "line 2 does not follow line 1" in link.sentence) == (False, True)


def test_a_number_that_another_registry_had_shows_no_foreign_events(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    client.delete_registered_model(recipe.registered_model)
    identity.start_new(recipe)
    run()
    assert links_of(recipe, "2")["history"].sentence.count("promoted") == 1


def test_a_missing_commit_has_the_reason_that_the_training_recorded(tmp_path):
    link = trace._commit(None, {"git_problem": "git is not installed"}, tmp_path)
    assert (link.sentence, link.holds) == ("not recorded by the training: git is not installed", None)


def test_a_commit_that_git_cannot_look_up_has_git_s_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    link = trace._commit("c" * 40, {}, tmp_path)
    assert link.holds is None
    assert link.sentence.startswith(f"{'c' * 12} cannot be looked up: git is not installed")


def test_the_history_of_a_version_has_the_rollback_that_withdrew_it(recipe: Recipe, champions: None) -> None:
    review.rollback(recipe, None, "cats look odd", "ann")
    words = [event.partition(" ")[0] for event in links_of(recipe, "4")["history"].sentence.split("; ")]
    assert words == ["promoted", "withdrawn"]
