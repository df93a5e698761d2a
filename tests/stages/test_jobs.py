"""Stages at the same time: the order, the number, and real DVC processes side by side in one workspace."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_fixtures import Toy
from waiting import alive, processes, stamps, wait_until

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.reports import costs
from mobilenet_pipeline.stages import dvc, jobs, runner
from mobilenet_pipeline.stages.runner import StageResult

ROOT = Path(__file__).resolve().parents[2]
DIGITS = load_recipe("digits", ROOT / "params.yaml")
CANDIDATES = ("scratch", "pretrained", "wide", "deep")
TRAININGS = [f"train@digits-{name}" for name in CANDIDATES]


def expanded(recipe: Recipe, file: str) -> dict[str, Any]:
    """Return the recipe's stages in a dvc.yaml, by name, with the values of their variables."""
    items = runner.variables(recipe)
    stages = {}
    for kind, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items():
        group = items[stage["foreach"][2:-1]] if "foreach" in stage else {recipe.name: {"recipe": recipe.name}}
        for key, item in group.items():
            text = json.dumps(stage.get("do", stage))
            for name, value in item.items():
                text = text.replace(f"${{item.{name}}}", value)
            stages[f"{kind}@{key}"] = json.loads(text)
    return stages


def files(stage: dict[str, Any], *sections: str) -> set[str]:
    """Return the files that sections of a stage name; an entry may have options."""
    entries = [entry for section in sections for entry in stage.get(section, [])]
    return {name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])}


def needs(recipe: Recipe, file: str) -> dict[str, set[str]]:
    """Return for each of the recipe's stages in a dvc.yaml those whose files it reads."""
    stages = expanded(recipe, file)
    writers = {path: stage for stage, entry in stages.items() for path in files(entry, "outs", "metrics", "plots")}
    return {
        stage: {writers[path] for path in files(entry, "deps", "params") & {*writers}}
        for stage, entry in stages.items()
    }


PIPELINES = pytest.mark.parametrize(("name", "file"), [("digits", "dvc.yaml"), ("cifar10", "recipes/dvc.yaml")])


@PIPELINES
def test_the_order_of_stages_is_that_of_their_files(name: str, file: str) -> None:
    recipe = load_recipe(name, ROOT / "params.yaml")
    order, needed = runner.predecessors(recipe, evaluate_alone=False), needs(recipe, file)
    implied: dict[str, set[str]] = {}
    for stage, before in order.items():
        implied[stage] = set(before).union(*(implied[earlier] for earlier in before))
        assert set(before) <= needed[stage] <= implied[stage]
    assert {*order} == {*needed}


@PIPELINES
@pytest.mark.parametrize("alone", [True, False])
def test_a_run_that_begins_at_any_stage_keeps_the_order(name: str, file: str, alone: bool) -> None:
    recipe = load_recipe(name, ROOT / "params.yaml")
    order, needed = runner.predecessors(recipe, evaluate_alone=alone), needs(recipe, file)
    stages = runner.stage_names(recipe)
    for begin in range(len(stages)):
        left = {*stages[begin:]}
        ended: set[str] = set()
        for stage in TopologicalSorter({name: {*order[name]} & left for name in left}).static_order():
            # What ends before the stage whatever runs beside it: its predecessors and theirs.
            before = {*order[stage]} & left
            while more := {each for one in before for each in order[one] if each in left} - before:
                before |= more
            assert needed[stage] & left <= before <= ended
            ended.add(stage)


def test_evaluations_run_after_all_exports_and_one_by_one() -> None:
    order = runner.predecessors(load_recipe("cifar10", ROOT / "params.yaml"))
    artefacts = ["scratch", "scratch_int8", "pretrained", "pretrained_int8"]
    exports, evaluations = ([f"{stage}@cifar10-{name}" for name in artefacts] for stage in ("export", "evaluate"))
    earlier = [[], *([name] for name in evaluations[:-1])]
    assert [order[name] for name in evaluations] == [[*exports, *one] for one in earlier]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_order_names_the_stages_as_one_after_the_other(name: str) -> None:
    recipe = load_recipe(name, ROOT / "params.yaml")
    assert list(runner.predecessors(recipe)) == runner.stage_names(recipe)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(jobs, "gpus", list)


@pytest.mark.parametrize(("given", "variable", "number"), [(None, "", 2), (None, "3", 3), (1, "3", 1)])
def test_an_argument_overrides_the_variable(
    given: int | None, variable: str, number: int, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(jobs.SETTING, variable)
    assert jobs.number_of_jobs(DIGITS, given) == number


def test_two_stages_run_at_once_on_two_cores(two_cores: None) -> None:
    assert jobs.number_of_jobs(DIGITS, None) == 2


def test_one_stage_at_a_time_runs_on_one_core(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert jobs.number_of_jobs(DIGITS, None) == 1


def test_one_stage_at_a_time_runs_on_a_machine_with_a_gpu(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "gpus", lambda: ["a GPU"])
    assert jobs.number_of_jobs(DIGITS, None) == 1


def test_a_training_with_a_budget_of_cpu_minutes_runs_alone(two_cores: None) -> None:
    assert jobs.number_of_jobs(load_recipe("cifar10_10m", ROOT / "params.yaml"), None) == 1


@pytest.mark.parametrize(("cluster", "number"), [("auto", jobs.ALL), ("ray://h:10001", jobs.ALL), ("local", 1)])
def test_on_a_cluster_of_several_machines_all_stages_may_run_at_once(
    cluster: str, number: int, two_cores: None
) -> None:
    assert jobs.number_of_jobs(DIGITS, None, cluster) == number


@pytest.mark.parametrize(
    ("given", "variable", "sentence"),
    [(0, "2", "jobs is '0'; give"), (-1, "2", "jobs is '-1'"), (None, "all", "MOBILENET_PIPELINE_JOBS is 'all'; give")],
)
def test_a_wrong_number_of_jobs_is_named(
    given: int | None, variable: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(jobs.SETTING, variable)
    with pytest.raises(ValueError, match=sentence):
        jobs.number_of_jobs(DIGITS, given)


def test_machines_of_tf_config_train_one_candidate_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}}')
    assert jobs.number_of_jobs(DIGITS, None) == 1
    with pytest.raises(ValueError, match=r"jobs is '2', and the machines of TF_CONFIG .*; set jobs to 1"):
        jobs.number_of_jobs(DIGITS, 2)


class Made:
    """Stages that end when the test says so."""

    def __init__(self) -> None:
        self.begun: dict[str, Future[str]] = {}

    def start(self, name: str) -> "Future[str]":
        self.begun[name] = Future()
        return self.begun[name]

    def run(self, order: dict[str, list[str]], count: int, results: list[str]) -> "Future[dict[str, str]]":
        """Begin to run the stages in a thread."""
        pool = ThreadPoolExecutor(1)
        done = pool.submit(jobs.side_by_side, order, count, self.start, results.append)
        pool.shutdown(wait=False)
        return done

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: list(self.begun) == list(names), lambda: str(list(self.begun)))


@pytest.fixture
def made() -> Made:
    return Made()


ORDER: dict[str, list[str]] = {"a": [], "b": [], "c": ["a"], "d": ["c"], "e": ["b"]}


def test_a_stage_starts_as_soon_as_its_predecessor_has_ended(made: Made) -> None:
    done = made.run(ORDER, 2, [])
    made.wait_for("a", "b")
    made.begun["a"].set_result("A")
    made.wait_for("a", "b", "c")
    made.begun["b"].set_result("B")
    made.wait_for("a", "b", "c", "e")
    for name in "ce":
        made.begun[name].set_result(name.upper())
    made.wait_for(*"abced")
    made.begun["d"].set_result("D")
    assert done.result() == {name: name.upper() for name in "abced"}


def test_one_job_runs_one_stage_at_a_time_in_the_given_order(made: Made) -> None:
    done, begun = made.run(ORDER, 1, []), []
    for name in "abcde":
        begun.append(name)
        made.wait_for(*begun)
        made.begun[name].set_result(name)
    assert list(done.result()) == begun


def test_after_a_failure_no_stage_starts_and_the_others_end(made: Made) -> None:
    noted: list[str] = []
    done = made.run(ORDER, 2, noted)
    made.wait_for("a", "b")
    made.begun["a"].set_exception(ValueError("a is wrong"))
    made.begun["b"].set_result("B")
    with pytest.raises(ValueError, match=r"^a is wrong$"):
        done.result()
    assert (list(made.begun), noted) == (["a", "b"], ["B"])


def test_several_failures_are_all_named(made: Made) -> None:
    done = made.run(ORDER, 2, [])
    made.wait_for("a", "b")
    made.begun["b"].set_exception(ValueError("b is wrong"))
    made.begun["a"].set_exception(ValueError("a is wrong"))
    with pytest.raises(runner.StagesFailed, match=r"^b is wrong; a is wrong$"):
        done.result()


def test_a_fault_of_the_program_is_raised_before_others(made: Made) -> None:
    done = made.run(ORDER, 2, [])
    made.wait_for("a", "b")
    made.begun["b"].set_exception(ValueError("b is wrong"))
    made.begun["a"].set_exception(KeyError("a"))
    with pytest.raises(KeyError):
        done.result()


@pytest.fixture
def four(toy: Toy) -> Toy:
    """The toy workspace with four candidates, ready to be trained."""
    workspace = toy()
    pipeline = workspace / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("[scratch, pretrained]", f"[{', '.join(CANDIDATES)}]"))
    (workspace / "data/digits").mkdir(parents=True)
    (workspace / "reports/digits").mkdir(parents=True)
    (workspace / "reports/digits/validation.json").write_text("{}")
    return toy


def train_together() -> dict[str, StageResult]:
    """Train the four candidates at the same time, and note what each has cost."""
    recipe = load_recipe("digits")
    with ThreadPoolExecutor(len(TRAININGS)) as pool:
        return jobs.side_by_side(
            {name: [] for name in TRAININGS},
            len(TRAININGS),
            lambda name: pool.submit(copy_context().run, runner.run_stage, name, str),
            lambda result: costs.note(recipe, asdict(result), None),
        )


def test_dvc_lock_and_costs_stay_whole_with_four_trainings_at_once(four: Toy) -> None:
    together = [f"begun {name}" for name in TRAININGS]
    workspace = four(wait={"train": together})
    dvc.run("config", "--local", "core.hardlink_lock", "false")  # DVC's default; the other tests have the other lock
    for repetition in range(10):
        for path in (workspace / "stamps.txt", workspace / "reports/digits/costs.json"):
            path.unlink(missing_ok=True)
        (workspace / "setting.txt").write_text(str(repetition))
        results = train_together()
        lock = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
        assert {result.outcome for result in results.values()} == {"ran"}
        assert {event for event, _, _ in stamps(workspace)[:4]} == {"begun"}
        assert {name: digest_of(stage, "setting.txt") for name, stage in lock.items()} == dict.fromkeys(
            TRAININGS, hashlib.md5(str(repetition).encode()).hexdigest()
        )
        assert {*costs.known(load_recipe("digits"))} == {*TRAININGS}
    assert json.loads(dvc.run("status", "--json", *TRAININGS).stdout) == {}


def digest_of(stage: dict[str, Any], path: str) -> str:
    """Return the MD5 of a dependency in an entry of dvc.lock."""
    return str(next(dep["md5"] for dep in stage["deps"] if dep["path"] == path))


def test_four_trainings_at_once_are_restored(four: Toy) -> None:
    workspace = four()
    train_together()
    shutil.rmtree(workspace / "models")
    assert {result.outcome for result in train_together().values()} == {"restored"}
    assert len(stamps(workspace)) == 8


def test_an_interruption_ends_all_stages(four: Toy) -> None:
    workspace = four(sleep={"train": 300})
    with pytest.raises(KeyboardInterrupt), ThreadPoolExecutor(len(TRAININGS) + 1) as pool:
        jobs.side_by_side(
            {name: [] for name in [*TRAININGS, "interruption"]},
            len(TRAININGS) + 1,
            lambda name: pool.submit(copy_context().run, run_or_interrupt, workspace, name),
            str,
        )
    assert sorted(stage for event, stage, _ in stamps(workspace) if event == "terminated") == sorted(TRAININGS)
    assert not any(map(alive, processes(workspace)))


def run_or_interrupt(workspace: Path, name: str) -> None:
    """Run a stage; as `interruption`, raise what Ctrl-C raises once the trainings have begun."""
    if name != "interruption":
        runner.run_stage(name, str)
    wait_until(lambda: len(stamps(workspace)) == len(TRAININGS))
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_a_killed_process_that_left_a_lock_of_dvc_does_not_block_us(workspace, monkeypatch, name):
    """DVC's locks by hard links outlive the process that has them."""
    subprocess.run([*dvc.COMMAND, "init", "--no-scm", "--quiet"], check=True)
    dvc.run("config", "core.hardlink_lock", "true")
    monkeypatch.setattr(dvc, "LOCK_SECONDS", 1.0)
    program = f"import os\nfrom mobilenet_pipeline.stages import dvc\nwith dvc.holding({name!r}): os._exit(1)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 1
    assert (workspace / ".dvc/tmp" / name).exists()
    with dvc.holding(name):
        pass
    assert (workspace / ".dvc/tmp" / name).exists() == (name == "lock")


def test_the_lock_of_a_living_stage_stays(four: Toy) -> None:
    workspace = four(sleep={"train": 300})
    lock = workspace / ".dvc/tmp/rwlock"
    command = [
        sys.executable,
        "-c",
        f"from mobilenet_pipeline.stages import runner; runner.run_stage({TRAININGS[0]!r}, print)",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as other:
        wait_until(lambda: stamps(workspace))
        living = json.loads(lock.read_text())
        killed = {"pid": other.pid, "cmd": "dvc repro"}
        lock.write_text(json.dumps({**living, "write": {**living["write"], "models/killed": killed}}))
        runner._clear_left_locks()
        left = json.loads(lock.read_text())
        other.terminate()
    wait_until(lambda: not any(map(alive, processes(workspace))))
    assert left["write"] == living["write"]
