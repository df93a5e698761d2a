"""From an answer of the API to the version that gave it."""

import json
import subprocess
from pathlib import Path

import pytest

from mobilenet_pipeline import config, trace

ROOT = Path(__file__).resolve().parents[2]
ANSWER = {"class": "3", "confidence": 0.9, "model_name": "digits-mobilenet", "model_version": "7"}


def test_a_commit_holds_unless_there_were_changes_beside_it():
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("this is no Git repository, so it has no commit")
    commit = found.stdout.strip()
    assert [trace._commit(commit, dirty, ROOT).holds for dirty in (False, True)] == [True, None]


@pytest.fixture(scope="module")
def recipe() -> config.Recipe:
    return config.load_recipe("digits", ROOT / "params.yaml")


def test_an_answer_names_the_version_that_gave_it(recipe: config.Recipe):
    assert trace.version_in(json.dumps(ANSWER), recipe, "answer.json") == "7"


def test_an_answer_of_another_recipe_s_model_is_refused_with_the_remedy(recipe: config.Recipe):
    other = ANSWER | {"model_name": "cifar10-mobilenet"}
    expected = r"answer\.json is of cifar10-mobilenet, recipe digits has digits-mobilenet; give the recipe"
    with pytest.raises(trace.AnswerError, match=expected):
        trace.version_in(json.dumps(other), recipe, "answer.json")


@pytest.mark.parametrize("text", ["", "<html>", "{", "\x00"])
def test_what_is_not_json_is_refused_by_name_with_the_remedy(text: str, recipe: config.Recipe):
    with pytest.raises(trace.AnswerError, match=r"answer\.json is not JSON; save what /predict answers"):
        trace.version_in(text, recipe, "answer.json")


@pytest.mark.parametrize(
    "document", [[], "7", 7, None, {}, {"model_name": "digits-mobilenet"}, ANSWER | {"model_version": 7}]
)
def test_json_that_is_no_answer_is_refused_by_name_with_the_remedy(document: object, recipe: config.Recipe):
    with pytest.raises(trace.AnswerError, match=r"answer\.json has no model_name and model_version; save what"):
        trace.version_in(json.dumps(document), recipe, "answer.json")
