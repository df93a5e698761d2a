"""One DVC stage as a child process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import alive, ran, wait_until

from mobilenet_pipeline import pipeline
from mobilenet_pipeline.config import load_recipe

Toy = Callable[..., Path]


def test_stages_come_in_the_order_of_the_data(workspace: Path):
    names = pipeline.stage_names(load_recipe("digits"))
    assert names[:4] == ["ingest@digits", "validate@digits", "train@digits-scratch", "train@digits-pretrained"]
    assert names[4:6] == ["export@digits-scratch", "evaluate@digits-scratch"]


def test_a_stage_runs_once_and_then_has_nothing_to_do(toy: Toy):
    workspace, lines = toy(), []
    assert pipeline.stale(["ingest@digits"]) == {"ingest@digits"}
    first, second = (pipeline.run_stage("ingest@digits", lines.append) for _ in range(2))
    assert (first.outcome, first.changed, second.outcome, second.changed) == ("ran", True, "unchanged", False)
    assert pipeline.stale(["ingest@digits"]) == set()
    assert ran(workspace) == ["ingest@digits"]
    assert "Running stage 'ingest@digits':" in lines


def test_a_forced_stage_runs_again_and_its_time_is_that_of_all_it_started(toy: Toy):
    workspace = toy(burn={"validate": 1.7})
    (workspace / "data/digits").mkdir(parents=True)
    for force in (False, True):
        result = pipeline.run_stage("validate@digits", str, force=force)
        assert result.outcome == "ran"
        assert result.cpu_seconds > 1.7
        assert result.wall_seconds > 1.7
    assert len(ran(workspace)) == 2


def test_outputs_that_were_made_before_are_restored_from_the_cache(goes_on: Toy):
    workspace = goes_on()
    (workspace / "models/digits/scratch/history.csv").unlink()
    result = pipeline.run_stage("train@digits-scratch", str)
    assert (result.outcome, result.changed) == ("restored", True)
    assert ran(workspace) == []


def test_a_failed_stage_says_why_and_with_which_code(toy: Toy):
    toy(exit={"ingest": [65]})
    with pytest.raises(pipeline.StageFailed, match=r"ingest@digits failed \(exit code 65\): made up") as raised:
        pipeline.run_stage("ingest@digits", str)
    assert raised.value.cause == "made up to fail\nimages 3 and 4"


def test_a_stage_that_does_not_exist_is_named(toy: Toy):
    toy()
    with pytest.raises(pipeline.StageFailed, match="Stage 'nosuch' not found"):
        pipeline.run_stage("nosuch", str)


def test_a_lock_file_with_a_merge_conflict_is_named(toy: Toy):
    workspace = toy()
    (workspace / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n")
    with pytest.raises(pipeline.StageFailed, match=r"dvc\.lock' is invalid"):
        pipeline.stale(["ingest@digits"])


def test_a_lock_that_a_killed_dvc_has_left_half_written_stops_nobody(toy: Toy):
    workspace = toy()
    (workspace / ".dvc/tmp").mkdir(exist_ok=True)
    (workspace / ".dvc/tmp/rwlock").write_text("")
    assert pipeline.stale(["ingest@digits"]) == {"ingest@digits"}
    (workspace / ".dvc/tmp/rwlock").write_text('{"read": ')
    assert pipeline.run_stage("ingest@digits", str).outcome == "ran"


@pytest.mark.parametrize(
    ("name", "code", "line", "again"),
    [
        ("ingest@digits", 75, "error: no network", True),
        ("ingest@digits", 65, "error: wrong digest", False),
        ("validate@digits", 65, "error: the data did not pass", False),
        ("train@digits-scratch", 75, "error: no MLflow", True),
        ("train@digits-scratch", 255, "ERROR: Unable to acquire lock. Most likely", True),
        ("train@digits-scratch", 255, "ERROR: 'data' is busy, it is being blocked by:", True),
    ],
)
def test_only_what_a_network_or_a_lock_has_stopped_may_pass_again(name: str, code: int, line: str, again: bool):
    assert pipeline.may_pass_again(pipeline.StageFailed(name, code, [line])) is again


def test_whatever_stops_the_caller_ends_the_stage(toy: Toy):
    workspace = toy(sleep={"ingest": 60})

    def stop(line: str) -> None:
        if line.startswith("process "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stage("ingest@digits", stop)
    assert not alive(int((workspace / "process.txt").read_text()))


def test_the_stage_ends_with_a_caller_that_was_killed(toy: Toy):
    workspace = toy(sleep={"ingest": 60})
    command = "from mobilenet_pipeline.pipeline import run_stage; run_stage('ingest@digits', print)"
    caller = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL)
    stage = int(wait_until(lambda: (p := workspace / "process.txt").exists() and p.read_text(), 30))
    caller.kill()
    caller.wait()
    wait_until(lambda: not alive(stage), 10)


def test_a_process_that_will_not_end_is_killed():
    stubborn = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    with pipeline.leashed([sys.executable, "-c", stubborn], grace=0.5, stdout=subprocess.PIPE) as child:
        process = int(child.stdout.readline())
        started = time.monotonic()
    assert not alive(process)
    assert 0.4 < time.monotonic() - started < 20
    assert child.returncode == 128 + signal.SIGKILL


def test_what_a_finished_command_left_behind_is_ended():
    parent = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    with pipeline.leashed([sys.executable, "-c", parent], stdout=subprocess.PIPE) as child:
        left = int(child.stdout.readline())
    assert not alive(left)
    assert os.waitstatus_to_exitcode(0) == child.returncode


def test_a_process_whose_parent_ends_at_once_is_asked_to_end_only_once(tmp_path: Path):
    counted = tmp_path / "asked"
    slow = (
        "import pathlib, signal, time; asked = []; signal.signal(signal.SIGTERM, lambda *_: asked.append(1)); "
        "print('ready', flush=True)\n"
        "while not asked: time.sleep(0.01)\n"
        f"time.sleep(1); pathlib.Path({str(counted)!r}).write_text(str(len(asked)))"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {slow!r}])"
    with pipeline.leashed([sys.executable, "-c", parent], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
    assert counted.read_text() == "1"
