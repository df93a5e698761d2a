"""The comment on a pull request."""

import json
import subprocess
from pathlib import Path

import pull_request
import pytest
from registry_fixtures import Runs

from mobilenet_pipeline.config import Recipe


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


def test_the_newest_promotion_is_the_base(recipe: Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "somebody")
        monkeypatch.setenv(f"{name}_EMAIL", "somebody@localhost")
    subprocess.run(["git", "init", "--quiet"], check=True)
    for day, tag in (
        (1, "promoted/digits-mobilenet-2-aa"),
        (2, "promoted/digits-mobilenet-4-bb"),
        (3, "promoted/seed"),
    ):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2027-01-0{day}T00:00:00Z")
        subprocess.run(["git", "commit", "--quiet", "--allow-empty", "--message", tag], check=True)
        subprocess.run(["git", "tag", tag], check=True)
    assert pull_request.last_promotion(recipe) == "promoted/digits-mobilenet-4-bb"


def test_without_a_promotion_there_is_no_base(recipe: Recipe, workspace: Path) -> None:
    assert pull_request.last_promotion(recipe) is None
