"""The schedule, as people start it, on a real Prefect server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from waiting import alive, ran, wait_until

from mobilenet_pipeline import tracking

Toy = Callable[..., Path]
PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"


@contextmanager
def scheduled(workspace: Path, cron: str) -> Iterator[Callable[[], str]]:
    """`mobilenet-pipeline schedule` for as long as the body; gives a function that reads its log."""
    log = workspace / "schedule.log"
    with log.open("wb") as file:
        command = [str(PROGRAM), "schedule", "--recipe", "digits", "--cron", cron]
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        yield log.read_text
    finally:
        process.terminate()
        process.wait(30)


def runs_of(prefect: Any, deployment: str = "digits") -> list[dict[str, Any]]:
    only = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(prefect.request("POST", "/flow_runs/filter", json=only).json())


def test_a_scheduled_run_completes(toy: Toy, prefect: Any):
    workspace = toy()
    with scheduled(workspace, "* * * * * */10") as log:

        def completed() -> list[dict[str, Any]]:
            return [run for run in runs_of(prefect) if run["state_type"] == "COMPLETED" and run["auto_scheduled"]]

        (run, *_) = wait_until(completed, 100, log)
    assert run["state"]["message"].startswith("Nothing is promoted: scratch is at 50.00%")
    assert len(ran(workspace)) == 8
    deployment = prefect.read_deployment_by_name("train-and-promote/digits")
    assert deployment.global_concurrency_limit.limit == 1
    (automation,) = prefect.read_automations_by_name("mobilenet-pipeline: a flow run whose process is gone has crashed")
    assert automation.enabled
    prefect.delete_deployment(deployment.id)  # or its late runs would be the next test's


def test_what_ends_the_schedule_ends_the_run_in_progress(toy: Toy, prefect: Any):
    workspace = toy(sleep={"ingest": 300})
    with scheduled(workspace, "0 3 1 1 *") as log:
        start_run(prefect, log)
        stage = int(wait_until(lambda: (p := workspace / "process.txt").exists() and p.read_text(), 60, log))
        assert alive(stage)
    assert not alive(stage)


def start_run(prefect: Any, log: Callable[[], str]) -> Any:
    """A run of the deployment, once it is served."""
    wait_until(lambda: "Your flow" in log(), 60, log)
    return prefect.create_flow_run_from_deployment(prefect.read_deployment_by_name("train-and-promote/digits").id)


def test_cancelling_a_run_ends_its_training(toy: Toy, prefect: Any):
    from prefect.states import Cancelling

    workspace = toy(sleep={"train": 300})
    with scheduled(workspace, "0 3 1 1 *") as log:
        run = start_run(prefect, log)
        wait_until(lambda: "train@digits-scratch" in ran(workspace), 60, log)
        stage = int(wait_until((workspace / "process.txt").read_text, 10))
        wait_until(lambda: "train digits" in Path(f"/proc/{stage}/cmdline").read_text().replace("\0", " "), 10)
        prefect.set_flow_run_state(run.id, Cancelling())
        wait_until(lambda: not alive(stage), 40, log)
        wait_until(lambda: prefect.read_flow_run(run.id).state.is_cancelled(), 40, log)
        client = mlflow.MlflowClient(tracking.use_store())
        (parent,) = wait_until(lambda: client.search_runs(["1"]), 5)
        wait_until(lambda: client.get_run(parent.info.run_id).info.status == "KILLED", 20, log)


def test_a_schedule_that_is_none_is_refused_in_a_sentence(workspace: Path, prefect: Any):
    command = [str(PROGRAM), "schedule", "--cron", "every day"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "every day" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("cron", "timezone"), [("nonsense", "UTC"), ("0 3 * * *", "nonsense")])
def test_a_schedule_needs_a_cron_expression_and_a_timezone(cron: str, timezone: str):
    from flows import deployments

    with pytest.raises(ValueError, match="'nonsense' is no "):
        deployments.check(cron, timezone)
