"""A real Prefect server, and a workspace in which one run of the toy stages has done everything."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_fixtures import Toy, give_orders
from waiting import LIMIT, Recorder, free_port

from mobilenet_pipeline.registry.store import use_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def toy_template(toy_template: Path) -> Path:
    """The toy workspace before any run, with an empty MLflow store."""
    here = Path.cwd()
    os.chdir(toy_template)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        use_store()
    finally:
        os.chdir(here)
    return toy_template


@pytest.fixture(autouse=True)
def one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage at a time, so that tests can name the next one; `test_side_by_side` has tests of several."""
    monkeypatch.setenv("MOBILENET_PIPELINE_JOBS", "1")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server of the tests' own, as the program starts it."""
    from flows import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        server.prepare(quiet=False)
        with server.running(free_port()) as api:
            patch.delenv("PREFECT_API_URL")
            patch.delenv("PREFECT_HOME")
            yield api
            drain()


@dataclass(frozen=True)
class Finished:
    """A workspace in which a run has done everything, the run's final state, and what a listener heard of it."""

    workspace: Path
    state: Any
    heard: Recorder


@pytest.fixture(scope="session")
def finished(toy_template: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole run, which several tests look at or continue from."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import training

    workspace, here, recorder = tmp_path_factory.mktemp("finished"), Path.cwd(), Recorder()
    shutil.copytree(toy_template, workspace, dirs_exist_ok=True)
    shutil.copyfile(ROOT / "params.yaml", workspace / "params.yaml")
    give_orders(workspace)
    os.chdir(workspace)
    token = training.listener.set(recorder)
    try:
        with temporary_settings({PREFECT_API_URL: server}):
            return Finished(workspace, training.train_and_promote("digits", jobs=1, return_state=True), recorder)
    finally:
        training.listener.reset(token)
        os.chdir(here)


@pytest.fixture
def after_run(workspace: Path, finished: Finished) -> Toy:
    """A copy of the finished workspace; call it to set how its stages behave from now on."""
    shutil.copytree(finished.workspace, workspace, dirs_exist_ok=True)
    (workspace / "ran.txt").unlink()

    def order(**orders: Any) -> Path:
        give_orders(workspace, **orders)
        return workspace

    return order


def drain() -> None:
    """Send what this process has yet to send to the server: at exit it would try a dead server for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=LIMIT)
    EventsWorker.drain_all(timeout=LIMIT)


@pytest.fixture
def prefect(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of that server, which this process's flows and children use too."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield client
