"""`mobilenet-pipeline run` as a program."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_fixtures import Toy
from waiting import alive, ran, read_process, wait_until

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.workspace import locks

PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"


def test_a_failed_run_gives_the_cause_and_its_exit_code(toy: Toy, prefect: Any) -> None:
    workspace = toy(exit={"validate": [65]})
    # Not even the environment's own folder is on the PATH.
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(PROGRAM), "run"], capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: stage validate@digits failed (exit code 65): made up to fail\nimages 3 and 4\n"
    assert "ingest@digits ran, " in done.stdout
    assert "validate@digits failed, " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert ran(workspace) == ["ingest@digits", "validate@digits"]


def test_a_skipped_run_writes_no_results(toy: Toy, prefect: Any) -> None:
    workspace = toy()
    with locks.only_run(load_recipe("digits"), workspace):
        command = [str(PROGRAM), "run", "--results", "copies"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Skipped: a run of digits is in progress (process " in done.stdout
    assert done.stderr == "error: this run was skipped, so copies gets no results: run it again later\n"
    assert not (workspace / "copies").exists()


def test_a_server_that_does_not_answer_is_named(workspace: Path) -> None:
    dead = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run([str(PROGRAM), "run"], capture_output=True, text=True, env=dead, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Prefect server answers at http://127.0.0.1:9/api (PREFECT_API_URL)")


def test_a_killed_run_leaves_no_process(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = toy(sleep={"ingest": 300})
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own = {**os.environ, "PREFECT_HOME": str(workspace / ".prefect")}
    with (workspace / "run.log").open("wb") as log:
        killed = subprocess.Popen([str(PROGRAM), "run"], stdout=log, stderr=log, env=own)
    stage = read_process(workspace, (workspace / "run.log").read_text)
    children = [child.pid for child in psutil.Process(killed.pid).children(recursive=True)]
    killed.kill()
    killed.wait()
    assert stage in children
    wait_until(lambda: not any(alive(child) for child in children))
