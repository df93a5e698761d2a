"""A run with several jobs: stages at the same time, with retries, failures and interruptions."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from rich.console import Console
from toy_fixtures import Toy
from waiting import Recorder, alive, processes, ran, stamps, wait_until

from flows import training
from flows.display import Display
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.reports import results
from mobilenet_pipeline.stages import dvc, runner
from mobilenet_pipeline.system import process

PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"
SCRATCH, PRETRAINED = "train@digits-scratch", "train@digits-pretrained"


@pytest.fixture
def heard() -> Any:
    """What a listener hears of the flow."""
    recorder = Recorder()
    token = training.listener.set(recorder)
    yield recorder
    training.listener.reset(token)


def position(workspace: Path, event: str, stage: str) -> int:
    """Return the place of a stamp among all."""
    return [(each, name) for each, name, _ in stamps(workspace)].index((event, stage))


def test_a_candidate_is_exported_while_another_is_trained(toy: Toy, prefect: Any, heard: Recorder) -> None:
    waits = {SCRATCH: [f"begun {PRETRAINED}"], PRETRAINED: ["ended export@digits-scratch"]}
    workspace = toy(wait=waits)
    state = training.train_and_promote("digits", jobs=2, return_state=True)
    recipe = load_recipe("digits")
    names = runner.stage_names(recipe)
    assert state.is_completed()
    assert position(workspace, "begun", PRETRAINED) < position(workspace, "ended", SCRATCH)
    assert position(workspace, "ended", "export@digits-scratch") < position(workspace, "ended", PRETRAINED)
    exports = [position(workspace, "ended", f"export@digits-{name}") for name in ("scratch", "pretrained")]
    assert max(exports) < position(workspace, "begun", "evaluate@digits-scratch")
    assert sorted(ran(workspace)) == sorted(names)
    assert {heard.ended[name] for name in names} == {"ran"}
    # The report and DVC are as after a run of one stage after the other.
    assert [row["name"] for row in json.loads(results.results_path(recipe).read_text())["stages"]] == names
    assert sorted(yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]) == sorted(names)
    assert json.loads(dvc.run("status", "--json").stdout) == {}


def test_one_job_keeps_the_order(toy: Toy, prefect: Any) -> None:
    workspace = toy()
    training.train_and_promote("digits", jobs=1)
    assert ran(workspace) == runner.stage_names(load_recipe("digits"))


def test_the_variable_sets_the_number_of_jobs(toy: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_PIPELINE_JOBS", "none")
    workspace = toy()
    with pytest.raises(ValueError, match="MOBILENET_PIPELINE_JOBS is 'none'; give the number of stages"):
        training.train_and_promote("digits")
    assert ran(workspace) == []


def test_a_failed_candidate_lets_the_other_finish(toy: Toy, prefect: Any, heard: Recorder) -> None:
    workspace = toy(exit={SCRATCH: [1]}, wait={PRETRAINED: [f"failed {SCRATCH}"]}, sleep={PRETRAINED: 1})
    with pytest.raises(runner.StageFailed, match=r"train@digits-scratch failed \(exit code 1\): made up to fail"):
        training.train_and_promote("digits", jobs=2)
    assert position(workspace, "failed", SCRATCH) < position(workspace, "ended", PRETRAINED)
    assert heard.ended[PRETRAINED] == "ran"
    assert PRETRAINED in yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]


def test_two_failed_candidates_are_both_named(toy: Toy, prefect: Any) -> None:
    both = [f"begun {SCRATCH}", f"begun {PRETRAINED}"]
    toy(exit={"train": [1, 1]}, wait={"train": both})
    state = training.train_and_promote("digits", jobs=2, return_state=True)
    assert {f"stage {name} failed" in state.message for name in (SCRATCH, PRETRAINED)} == {True}


def test_a_stage_beside_others_is_tried_again(toy: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RETRY_SECONDS", [0.0, 0.0])
    workspace = toy(exit={SCRATCH: [75, 75]})
    assert training.train_and_promote("digits", jobs=2, return_state=True).is_completed()
    assert ran(workspace).count(SCRATCH) == 3


def test_the_end_of_the_run_ends_the_pause_before_another_try() -> None:
    no_network = Failed(data=runner.StageFailed(SCRATCH, os.EX_TEMPFAIL, []))
    run = TaskRun(task_key="stage", dynamic_key="0", run_count=2)
    with process.grouped() as children:
        children.end()
        assert not training.may_pass_after_a_pause(training.stage, run, no_network)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_all_its_trainings(number: int, toy: Toy, prefect: Any) -> None:
    workspace = toy(sleep={"train": 300})
    with (workspace / "run.log").open("wb") as log:
        run = subprocess.Popen([str(PROGRAM), "run", "--jobs", "2"], stdout=log, stderr=log)
    wait_until(lambda: len(processes(workspace)) == 4, (workspace / "run.log").read_text)
    run.send_signal(number)
    assert run.wait() == 130, (workspace / "run.log").read_text()
    assert {stage for event, stage, _ in stamps(workspace) if event == "terminated"} == {SCRATCH, PRETRAINED}
    assert not any(map(alive, processes(workspace)))


def test_the_trainings_of_a_killed_run_end(toy: Toy, prefect: Any) -> None:
    workspace = toy(sleep={"train": 300})
    with (workspace / "run.log").open("wb") as log:
        run = subprocess.Popen([str(PROGRAM), "run", "--jobs", "2"], stdout=log, stderr=log)
    wait_until(lambda: len(processes(workspace)) == 4, (workspace / "run.log").read_text)
    run.kill()
    run.wait()
    wait_until(lambda: not any(map(alive, processes(workspace))))


def test_lines_of_several_steps_have_the_step_s_name(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, Display(Console(file=file, width=100), [SCRATCH], jobs=2) as display:
        display.begin(SCRATCH)
        display.hear(SCRATCH, "epoch 1/2")
    assert f"    {SCRATCH}: epoch 1/2" in (tmp_path / "log").read_text().splitlines()


def test_a_terminal_shows_several_steps_in_progress(tmp_path: Path) -> None:
    console = Console(file=(tmp_path / "log").open("w"), force_terminal=True, width=100)
    with Display(console, [SCRATCH, PRETRAINED], jobs=2) as display:
        for step in (SCRATCH, PRETRAINED):
            display.begin(step)
        display.hear(SCRATCH, "epoch 1/2 loss 0.5")
        display.hear(PRETRAINED, "epoch 2/4 loss 0.3")
        shown = [task.fields["detail"] for task in display.progress.tasks if not task.finished]
    assert shown == ["epoch 1/2 loss 0.5", "epoch 2/4 loss 0.3"]
