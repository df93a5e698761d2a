"""A workspace whose stages make their outputs up in no time, and a real Prefect server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from waiting import Recorder, answers, free_port, wait_until

from mobilenet_pipeline import tracking

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy workspace before anything has run: DVC without Git, toy stages, an empty MLflow store."""
    folder = tmp_path_factory.mktemp("template")
    for name in ("toy.py", "dvc.yaml"):
        shutil.copyfile(HERE / name, folder / name)
    (folder / "knob.txt").write_text("1")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    here = Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        tracking.use_store()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def toy(workspace: Path, template: Path) -> Callable[..., Path]:
    """The toy workspace as current directory; call it to say how its stages behave (see toy.py)."""
    shutil.copytree(template, workspace, dirs_exist_ok=True)

    def order(**orders: Any) -> Path:
        (workspace / "toy.json").write_text(json.dumps({"right": 100, **orders}))
        return workspace

    order()
    return order


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a `prefect server` of the tests' own."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    api = f"http://127.0.0.1:{port}/api"
    try:
        wait_until(lambda: answers(f"{api}/health"), 150, lambda: (home / "log").read_text())
        yield api
    finally:
        drain()
        process.terminate()
        process.wait(20)


@dataclass(frozen=True)
class Finished:
    """A workspace in which a run has done everything, the run's final state, and what a listener heard of it."""

    workspace: Path
    state: Any
    heard: Recorder


@pytest.fixture(scope="session")
def finished(template: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole run, which several tests look at or go on from."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import training

    workspace, here, recorder = tmp_path_factory.mktemp("finished"), Path.cwd(), Recorder()
    shutil.copytree(template, workspace, dirs_exist_ok=True)
    shutil.copyfile(ROOT / "params.yaml", workspace / "params.yaml")
    (workspace / "toy.json").write_text('{"right": 100}')
    os.chdir(workspace)
    token = training.listener.set(recorder)
    try:
        with temporary_settings({PREFECT_API_URL: server}):
            return Finished(workspace, training.train_and_promote("digits", return_state=True), recorder)
    finally:
        training.listener.reset(token)
        os.chdir(here)


@pytest.fixture
def goes_on(workspace: Path, finished: Finished) -> Callable[..., Path]:
    """A copy of the finished workspace; call it to say how its stages behave from now on."""
    shutil.copytree(finished.workspace, workspace, dirs_exist_ok=True)
    (workspace / "ran.txt").unlink()

    def order(**orders: Any) -> Path:
        (workspace / "toy.json").write_text(json.dumps({"right": 100, **orders}))
        return workspace

    return order


def drain() -> None:
    """Send what this process still has to tell the server: at exit it would try for a minute to reach a dead one."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


@pytest.fixture
def prefect(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of that server, which this process's flows and children use too."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield client
