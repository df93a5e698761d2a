"""The workflows of GitHub: they are valid, run what the Makefile has, and may do no more than they must."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@each_workflow
def test_every_make_target_of_a_workflow_exists(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8"))) <= targets


@each_workflow
def test_a_workflow_has_permissions_and_a_limit_in_time(path: Path):
    document = read(path)
    assert document["permissions"]["contents"] == "read"
    assert all("timeout-minutes" in job for job in document["jobs"].values())


@each_workflow
def test_an_action_has_a_version(path: Path):
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in steps(path) if "uses" in step)


@each_workflow
def test_no_text_of_a_pull_request_is_part_of_a_command(path: Path):
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


def pull_request_step(word: str) -> dict[str, Any]:
    """Return the step of the pull request's workflow with this word in its command."""
    return next(one for one in steps(ROOT / ".github/workflows/pull-request.yml") if word in one.get("run", ""))


@pytest.mark.parametrize("word", ["make pull-request", "GITHUB_STEP_SUMMARY", "gh pr comment"])
def test_a_failed_stage_is_commented_too(word: str):
    assert "!cancelled()" in pull_request_step(word)["if"]


def test_a_fork_has_no_servers_because_it_has_no_passwords():
    step = pull_request_step("servers.env")
    assert step["if"] == "github.event.pull_request.head.repo.full_name != github.repository"
    (job,) = read(ROOT / ".github/workflows/pull-request.yml")["jobs"].values()
    assert job["steps"].index(step) < job["steps"].index(pull_request_step("make stages"))
    assert {"PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} <= {*job["env"]}


def test_only_the_comment_may_be_written():
    writing = {
        path.stem: name for path in WORKFLOWS for name, right in read(path)["permissions"].items() if right != "read"
    }
    assert writing == {"pull-request": "pull-requests"}
