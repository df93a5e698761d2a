"""The schedule as a program, on a real Prefect server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from toy_fixtures import Toy
from waiting import alive, ran, read_process, wait_until

from flows import deployments
from mobilenet_pipeline.config import recipe_names
from mobilenet_pipeline.registry import store

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"


@contextmanager
def scheduled(workspace: Path, cron: str) -> Iterator[Callable[[], str]]:
    """Run `mobilenet-pipeline schedule` during the `with` body; yields a function that reads its log."""
    log = workspace / "schedule.log"
    with log.open("wb") as file:
        command = [str(PROGRAM), "schedule", "--recipe", "digits", "--cron", cron]
        quicker = {**os.environ, "PYTHONUNBUFFERED": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=quicker)
    try:
        yield log.read_text
    finally:
        process.terminate()
        process.wait()


def runs_of(prefect: Any, deployment: str = "digits") -> list[dict[str, Any]]:
    only = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(prefect.request("POST", "/flow_runs/filter", json=only).json())


def test_a_scheduled_run_completes(after_run: Toy, prefect: Any) -> None:
    workspace = after_run()
    (workspace / "metrics/digits/pretrained.json").unlink()
    with scheduled(workspace, "* * * * * */10") as log:

        def completed() -> list[dict[str, Any]]:
            return [run for run in runs_of(prefect) if run["state_type"] == "COMPLETED" and run["auto_scheduled"]]

        (run, *_) = wait_until(completed, log)
    assert run["state"]["message"].startswith("The candidates and the verdict have not changed")
    assert (workspace / "metrics/digits/pretrained.json").exists()
    deployment = prefect.read_deployment_by_name("train-and-promote/digits")
    assert deployment.global_concurrency_limit is None  # a dead run would hold it, and cancel the next one
    assert "the next runs: 2" in log()
    (automation,) = prefect.read_automations_by_name(deployments.CRASHED)
    assert automation.enabled
    prefect.delete_deployment(deployment.id)  # its late runs would be the next test's


def test_the_end_of_the_schedule_ends_the_run_in_progress(toy: Toy, prefect: Any) -> None:
    workspace = toy(sleep={"ingest": 300})
    with scheduled(workspace, "0 3 1 1 *") as log:
        start_run(prefect, log)
        stage = read_process(workspace, log)
        assert alive(stage)
    assert not alive(stage)
    assert "never awaited" not in log()


def start_run(prefect: Any, log: Callable[[], str]) -> Any:
    """Start a run of the deployment once the schedule serves it."""
    wait_until(lambda: "Your flow" in log(), log)
    return prefect.create_flow_run_from_deployment(prefect.read_deployment_by_name("train-and-promote/digits").id)


def test_cancelling_a_run_ends_its_training(after_run: Toy, prefect: Any) -> None:
    from prefect.states import Cancelling

    workspace = after_run(sleep={"train": 300})
    (workspace / "setting.txt").write_text("2")
    (workspace / "process.txt").unlink()
    with scheduled(workspace, "0 3 1 1 *") as log:
        flow_run = start_run(prefect, log)
        stage = read_process(workspace, log)
        assert ran(workspace) == ["train@digits-scratch"]
        prefect.set_flow_run_state(flow_run.id, Cancelling())
        wait_until(lambda: not alive(stage), log)
        wait_until(lambda: prefect.read_flow_run(flow_run.id).state.is_cancelled(), log)
        client = mlflow.MlflowClient(store.use_store())
        runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        assert [run.info.status for run in runs if run.data.tags.get("flow_run") == str(flow_run.id)] == ["KILLED"]


def test_an_invalid_schedule_is_refused_in_a_sentence(workspace: Path, prefect: Any) -> None:
    command = [str(PROGRAM), "schedule", "--cron", "every day"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "every day" in done.stderr
    assert "runs at" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def deployed(server: str) -> Any:
    """The deployment of `digits` as `prefect deploy` makes it, and the names of the server's automations."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "digits"]
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        client.request("POST", "/work_pools/", json={"name": "mobilenet", "type": "process"})
        environment = {**os.environ, "PREFECT_API_URL": server}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        deployment = client.read_deployment_by_name("train-and-promote/digits")
        client.delete_deployment(deployment.id)
        return deployment, [row["name"] for row in client.request("POST", "/automations/filter", json={}).json()]


def test_a_deployment_runs_its_recipe_when_its_schedule_is_on(deployed: Any) -> None:
    deployment, _ = deployed
    assert deployment.parameters == {"recipe": "digits"}
    assert [schedule.active for schedule in deployment.schedules] == [False]


def test_prefect_s_form_offers_the_recipes(deployed: Any) -> None:
    form = deployed[0].parameter_openapi_schema["properties"]["recipe"]
    assert form["enum"] == recipe_names(ROOT / "params.yaml")


def test_deploying_lets_the_server_find_crashed_runs(deployed: Any) -> None:
    assert deployments.CRASHED in deployed[1]


@pytest.mark.parametrize("flow", ["training.py:train_and_promote", "monitoring.py:monitor"])
def test_every_recipe_has_a_deployment_of_training_and_monitoring(flow: str) -> None:
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    deployed = [one["name"] for one in document["deployments"] if one["entrypoint"] == f"flows/{flow}"]
    assert deployed == recipe_names(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("nonsense", "UTC", "invalid cron expression 'nonsense'"),
        ("0 3 * * *", "nonsense", "unknown time zone 'nonsense'"),
        ("0 3 * * *", "Europe", "unknown time zone 'Europe'"),
        ("0 3 31 2 *", "UTC", "'0 3 31 2 \\*' never comes"),
    ],
)
def test_a_schedule_needs_a_cron_expression_and_a_time_zone(cron: str, timezone: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deployments.check(cron, timezone)


BERLIN, YEAR = "Europe/Berlin", datetime(2027, 1, 1, tzinfo=UTC)


def test_a_time_that_clocks_skip_or_show_twice_is_warned_about() -> None:
    skipped, twice = deployments.warnings_of("30 2 * * *", BERLIN, YEAR)
    assert skipped.startswith("'30 2 * * *' means 02:30 on 2027-03-28, which the clocks of Europe/Berlin skip: Prefect")
    assert "runs it at 01:30 CET; choose a time outside 02:00 to 03:00" in skipped
    assert "on 2027-10-31, which the clocks of Europe/Berlin show twice: Prefect runs it at 02:30 CEST only" in twice


@pytest.mark.parametrize(("cron", "timezone"), [("0 3 * * *", BERLIN), ("30 1 * * *", BERLIN), ("30 2 * * *", "UTC")])
def test_other_times_are_not_warned_about(cron: str, timezone: str) -> None:
    assert deployments.warnings_of(cron, timezone, YEAR) == []


def test_half_an_hour_that_clocks_skip_is_known_too() -> None:
    (warning,) = deployments.warnings_of("15 2 * * *", "Australia/Lord_Howe", YEAR)
    assert "02:15 on 2027-10-03" in warning
    assert "choose a time outside 02:00 to 02:30" in warning


def test_the_next_times_are_those_of_prefect_s_scheduler() -> None:
    times = deployments.next_times("30 2 * * *", BERLIN, start=datetime(2027, 3, 27, tzinfo=UTC))
    assert [f"{time:%m-%d %H:%M}" for time in times] == ["03-27 02:30", "03-28 01:30", "03-29 02:30"]
