"""The comment on a pull request."""

import json
import re
import subprocess
from pathlib import Path

import pull_request
import pytest
import requests
from registry_fixtures import Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.stages.runner import StageFailed


def put_validation(workspace: Path, *failed: str) -> None:
    rows = [{"sentence": sentence, "success": False} for sentence in failed] + [{"sentence": "", "success": True}]
    path = workspace / "reports/digits/validation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": 1797, "expectations": rows}))


def test_the_comment_has_its_three_parts(recipe: Recipe, runs: Runs, workspace: Path) -> None:
    runs((181, 183))
    put_validation(workspace)
    text = pull_request.comment(recipe, None)
    assert text.startswith("## `digits`\n")
    assert "### Metrics, compared with `HEAD`" in text
    assert "1 of 1 expectations are met by 1,797 images." in text
    assert "<summary>All checks</summary>" in text


def test_a_failed_expectation_is_listed(recipe: Recipe, workspace: Path) -> None:
    put_validation(workspace, "No image is there twice")
    assert pull_request.validation(recipe).endswith("images.\n- ✗ No image is there twice")


def test_a_gate_without_candidates_says_why(recipe: Recipe, workspace: Path) -> None:
    assert pull_request.gate(recipe).startswith("No verdict: models/digits/scratch/training.json does not exist")


def test_a_gate_without_an_answer_of_mlflow_says_why(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Recipe) -> None:
        raise requests.exceptions.ConnectionError("connection refused")

    monkeypatch.setattr(pull_request.judging, "preview", fail)
    assert re.match(r"No verdict: MLflow at .* does not answer \(connection refused\)", pull_request.gate(recipe))


def test_a_failed_stage_is_a_sentence(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, _: object) -> None:
        raise StageFailed(name, 1, ["error: 2 images are black"])

    monkeypatch.setattr(pull_request.runner, "run_stage", fail)
    with pytest.raises(SystemExit, match=r"^error: stage ingest@digits failed \(exit code 1\): 2 images are black$"):
        pull_request.main(["digits", "--stages"])


def test_the_newest_promotion_is_the_base(recipe: Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "somebody")
        monkeypatch.setenv(f"{name}_EMAIL", "somebody@localhost")
    subprocess.run(["git", "init", "--quiet"], check=True)
    for day, tag in (
        (1, "promoted/digits-mobilenet-2-aaaaaaaa"),
        (2, "promoted/digits-mobilenet-4-bbbbbbbb"),
        (3, "promoted/digits-mobilenet-10m-3-cccccccc"),
        (4, "promoted/digits-mobilenet"),
    ):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2027-01-0{day}T00:00:00Z")
        subprocess.run(["git", "commit", "--quiet", "--allow-empty", "--message", tag], check=True)
        subprocess.run(["git", "tag", tag], check=True)
    assert pull_request.last_promotion(recipe) == "promoted/digits-mobilenet-4-bbbbbbbb"


def test_without_a_promotion_there_is_no_base(recipe: Recipe, workspace: Path) -> None:
    assert pull_request.last_promotion(recipe) is None
