"""`mobilenet-pipeline run` as a program."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waiting import ran

from mobilenet_pipeline import running
from mobilenet_pipeline.config import load_recipe

Toy = Callable[..., Path]
PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"


def test_a_run_that_fails_says_why_in_a_sentence_and_with_its_exit_code(toy: Toy, prefect: Any):
    workspace = toy(exit={"validate": [65]})
    # Not even the environment's own folder is on the PATH.
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(PROGRAM), "run"], capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: stage validate@digits failed (exit code 65): made up to fail\nimages 3 and 4\n"
    assert "ingest@digits ran, " in done.stdout
    assert "validate@digits failed, " in done.stdout
    assert ran(workspace) == ["ingest@digits", "validate@digits"]


def test_a_run_that_another_one_holds_up_keeps_no_figures(toy: Toy, prefect: Any):
    workspace = toy()
    with running.only_run(load_recipe("digits"), workspace):
        command = [str(PROGRAM), "run", "--results", "kept"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Skipped: a run of digits is in progress (process " in done.stdout
    assert done.stderr == "error: this run was skipped and has no figures to keep in kept: run it again later\n"
    assert not (workspace / "kept").exists()


def test_a_server_that_does_not_answer_is_named(workspace: Path):
    dead = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run([str(PROGRAM), "run"], capture_output=True, text=True, env=dead, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Prefect server answers at http://127.0.0.1:9/api (PREFECT_API_URL)")


def test_the_process_of_the_flow_never_loads_tensorflow():
    modules = "flows.training, flows.display, mobilenet_pipeline.results"
    modules += "".join(f", mobilenet_pipeline.{name}" for name in ("promotion", "registry", "report", "packaging"))
    check = f"import sys, {modules}; sys.exit(' '.join({{'tensorflow', 'keras', 'bentoml'}} & {{*sys.modules}}) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
