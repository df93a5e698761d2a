"""Other runs of a recipe, on a real Prefect server: the dead ones crash, and of the late ones the newest goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from toy_fixtures import Toy
from waiting import alive, read_process, wait_until

from flows import others, training
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.registry import runs, store

ELSEWHERE = {"mobilenet-pipeline.workspace": "other:/place"}


def running(prefect: Any, labels: dict[str, str], recipe: str = "digits") -> Any:
    """Return a flow run that is in progress according to the server."""
    from prefect.states import Running

    run = prefect.create_flow_run(training.train_and_promote, parameters={"recipe": recipe}, state=Running())
    prefect.update_flow_run_labels(run.id, labels)
    return run.id


def state_of(prefect: Any, run: Any) -> str:
    return str(prefect.read_flow_run(run).state.name)


@pytest.fixture
def here(workspace: Path) -> dict[str, str]:
    """The label of a run in this workspace."""
    return {"mobilenet-pipeline.workspace": runs.place()}


def test_a_run_of_this_workspace_without_the_lock_has_crashed(prefect: Any, here: dict[str, str]) -> None:
    run = running(prefect, here)
    others.close_dead("digits", alone=True)
    assert state_of(prefect, run) == "Crashed"


def test_without_the_lock_a_run_of_this_workspace_stays(prefect: Any, here: dict[str, str]) -> None:
    run = running(prefect, here)
    others.close_dead("digits", alone=False)
    assert state_of(prefect, run) == "Running"


def test_a_run_elsewhere_is_dead_after_three_heartbeats(prefect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = running(prefect, ELSEWHERE)
    others.close_dead("digits", alone=True)
    assert state_of(prefect, run) == "Running"
    monkeypatch.setattr(others, "silence", lambda: timedelta(0))
    others.close_dead("digits", alone=True)
    assert state_of(prefect, run) == "Crashed"


def test_a_run_of_another_recipe_stays(prefect: Any, here: dict[str, str]) -> None:
    run = running(prefect, here, recipe="cifar10")
    others.close_dead("digits", alone=True)
    assert state_of(prefect, run) == "Running"
    others.close_dead("cifar10", alone=True)


@pytest.fixture
def nightly(prefect: Any) -> Iterator[Any]:
    """The id of a deployment that is due every hour."""
    from prefect.client.schemas.schedules import CronSchedule

    flow = prefect.create_flow(training.train_and_promote)
    schedules = [{"schedule": CronSchedule(cron="0 * * * *"), "active": True}]
    deployment = prefect.create_deployment(
        flow, "nightly", schedules=[], parameters={"recipe": "digits"}, entrypoint="flows.training.train_and_promote"
    )
    prefect.create_deployment_schedules(deployment, [(each["schedule"], each["active"]) for each in schedules])
    yield deployment
    prefect.delete_deployment(deployment)


@pytest.fixture
def late(prefect: Any, nightly: Any) -> list[Any]:
    """The ids of three late runs of the deployment, the oldest first."""
    now = datetime.now(UTC)
    hours = {"start_time": (now - timedelta(hours=3)).isoformat(), "end_time": now.isoformat(), "max_runs": 3}
    prefect.request("POST", "/deployments/{id}/schedule", path_params={"id": nightly}, json=hours)
    found = others._find(prefect, due=(now - timedelta(hours=3), now), deployment_id=[nightly])
    return [run.id for run in reversed(found)]


def test_of_several_late_runs_the_newest_goes(prefect: Any, late: list[Any]) -> None:
    oldest, between, newest = late
    assert "goes instead" in str(others.give_way(oldest))
    assert state_of(prefect, between) == "Cancelled"
    assert others.give_way(newest) is None


def test_a_run_elsewhere_in_progress_goes_first(prefect: Any, nightly: Any) -> None:
    from prefect.states import Running

    first, second = (prefect.create_flow_run_from_deployment(nightly, state=Running()) for _ in range(2))
    prefect.update_flow_run_labels(first.id, ELSEWHERE)
    assert "is in progress in other:/place; wait until it ends" in str(others.take_turn(second.id))


def test_after_a_killed_worker_the_next_run_goes_and_the_dead_one_has_crashed(after_run: Toy, prefect: Any) -> None:
    workspace = after_run(sleep={"train": 300})
    (workspace / "setting.txt").write_text("2")
    (workspace / "process.txt").unlink()
    run, worker = run_by_worker(prefect, workspace)
    stage = read_process(workspace, (workspace / "worker.log").read_text)
    lost = [worker.pid, *(each.pid for each in psutil.Process(worker.pid).children(recursive=True))]
    # The holders of leashes go last, as on a host that is lost: nobody says that the run has ended.
    for process in lost:
        os.kill(process, signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not alive(stage))
    assert state_of(prefect, run) == "Running"
    after_run()
    assert training.train_and_promote("digits", return_state=True).is_completed()
    assert state_of(prefect, run) == "Crashed"
    client = mlflow.MlflowClient(store.use_store())
    found = client.search_runs([runs.experiment(load_recipe("digits"))], f"tags.flow_run = '{run}'")
    assert {each.info.status for each in found} == {"KILLED"}


def run_by_worker(prefect: Any, workspace: Path) -> tuple[Any, subprocess.Popen[bytes]]:
    """Start a Prefect worker and a run of a deployment in its pool; return the run's id and the worker."""
    pool = "killed"
    prefect.request("POST", "/work_pools/", json={"name": pool, "type": "process"})
    deployment = prefect.create_deployment(
        prefect.create_flow(training.train_and_promote),
        "killed",
        entrypoint="flows.training.train_and_promote",
        parameters={"recipe": "digits"},
        work_pool_name=pool,
        job_variables={"working_dir": str(workspace)},
    )
    run = prefect.create_flow_run_from_deployment(deployment)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with (workspace / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        )
    return run.id, worker
