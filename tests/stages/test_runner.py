"""One DVC stage as a child process."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_fixtures import Toy
from waiting import alive, ran, read_process, wait_until

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.stages import runner


def test_stages_come_in_the_order_of_the_data(workspace: Path) -> None:
    recipe = load_recipe("digits")
    names = runner.stage_names(recipe)
    assert names[:4] == ["ingest@digits", "validate@digits", "train@digits-scratch", "train@digits-pretrained"]
    assert names[4:6] == ["export@digits-scratch", "evaluate@digits-scratch"]
    assert runner.data_stages(recipe) + runner.train_stages(recipe) == names[:4]


def test_a_stage_runs_once_and_is_then_unchanged(toy: Toy) -> None:
    workspace, lines = toy(), []
    assert runner.stale(["ingest@digits"]) == {"ingest@digits"}
    first, second = (runner.run_stage("ingest@digits", lines.append) for _ in range(2))
    assert (first.outcome, first.changed, second.outcome, second.changed) == ("ran", True, "unchanged", False)
    assert runner.stale(["ingest@digits"]) == set()
    assert ran(workspace) == ["ingest@digits"]
    assert "Running stage 'ingest@digits':" in lines


def test_a_forced_stage_runs_again_and_all_its_time_counts(toy: Toy) -> None:
    workspace = toy(burn={"validate": 1.7})
    (workspace / "data/digits").mkdir(parents=True)
    for force in (False, True):
        result = runner.run_stage("validate@digits", str, force=force)
        assert result.outcome == "ran"
        assert result.cpu_seconds > 1.7
        assert result.wall_seconds > 1.7
    assert len(ran(workspace)) == 2


def test_earlier_outputs_are_restored_from_the_cache(toy: Toy) -> None:
    workspace = toy()
    for name in ("ingest@digits", "validate@digits", "train@digits-scratch"):
        runner.run_stage(name, str)
    (workspace / "ran.txt").unlink()
    (workspace / "models/digits/scratch/history.csv").unlink()
    result = runner.run_stage("train@digits-scratch", str)
    assert (result.outcome, result.changed) == ("restored", True)
    assert ran(workspace) == []


def test_a_failed_stage_has_its_cause_and_its_exit_code(toy: Toy) -> None:
    toy(exit={"ingest": [65]})
    with pytest.raises(runner.StageFailed, match=r"ingest@digits failed \(exit code 65\): made up") as raised:
        runner.run_stage("ingest@digits", str)
    assert raised.value.cause == "made up to fail\nimages 3 and 4"


def test_an_unknown_stage_is_named(toy: Toy) -> None:
    toy()
    with pytest.raises(runner.StageFailed, match="Stage 'nosuch' not found"):
        runner.run_stage("nosuch", str)


def test_a_lock_file_with_a_merge_conflict_is_named(toy: Toy) -> None:
    workspace = toy()
    (workspace / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n")
    with pytest.raises(runner.StageFailed, match=r"dvc\.lock' is invalid"):
        runner.stale(["ingest@digits"])


def test_a_half_written_lock_of_a_killed_dvc_is_cleared(toy: Toy) -> None:
    workspace = toy()
    (workspace / ".dvc/tmp").mkdir(exist_ok=True)
    (workspace / ".dvc/tmp/rwlock").write_text("")
    assert runner.stale(["ingest@digits"]) == {"ingest@digits"}
    (workspace / ".dvc/tmp/rwlock").write_text('{"read": ')
    assert runner.run_stage("ingest@digits", str).outcome == "ran"


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
def test_only_network_and_lock_failures_may_pass_again(name: str, code: int, line: str, again: bool) -> None:
    assert runner.may_pass_again(runner.StageFailed(name, code, [line])) is again


def test_a_stopped_caller_ends_its_stage(toy: Toy) -> None:
    workspace = toy(sleep={"ingest": 60})

    def stop(line: str) -> None:
        if line.startswith("process "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_stage("ingest@digits", stop)
    assert not alive(int((workspace / "process.txt").read_text()))


def test_a_killed_caller_ends_its_stage(toy: Toy) -> None:
    workspace = toy(sleep={"ingest": 60})
    command = "from mobilenet_pipeline.stages.runner import run_stage; run_stage('ingest@digits', print)"
    caller = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL)
    stage = read_process(workspace, 30)
    caller.kill()
    caller.wait()
    wait_until(lambda: not alive(stage), 10)
