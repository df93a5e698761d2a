"""One DVC stage as a child process."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from toy_fixtures import Toy
from waiting import alive, ran, read_process, wait_until

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.stages import dvc, runner
from mobilenet_pipeline.system import process

ROOT = Path(__file__).resolve().parents[2]


def test_stages_come_in_the_order_of_the_data(workspace: Path) -> None:
    recipe = load_recipe("digits")
    names = runner.stage_names(recipe)
    assert names[:4] == ["ingest@digits", "validate@digits", "train@digits-scratch", "train@digits-pretrained"]
    assert names[4:6] == ["export@digits-scratch", "evaluate@digits-scratch"]
    assert runner.data_stages(recipe) + runner.train_stages(recipe) == names[:4]


def test_recipes_apart_have_the_stages_of_recipes_dvc_yaml(workspace: Path) -> None:
    names = runner.stage_names(load_recipe("cifar10_10m"))
    assert names[:3] == ["recipe@cifar10_10m", "ingest@cifar10_10m", "validate@cifar10_10m"]
    assert runner.address(names[3]) == "recipes/dvc.yaml:train@cifar10_10m-scratch"
    assert runner.address("train@digits-scratch") == "train@digits-scratch"


def test_a_chosen_recipe_is_seen_by_dvc(workspace: Path) -> None:
    shutil.copytree(
        ROOT / "recipes", workspace / "recipes", ignore=shutil.ignore_patterns("chosen.yaml", ".dvc*", "*.lock")
    )
    shutil.copy(ROOT / ".dvcignore", workspace)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    before = stages_that_dvc_sees()
    for name in ("seed", "cifar10", "seed", "digits"):
        runner.choose(name)
    assert before == set()
    assert {"recipe@cifar10", "train@seed-scratch"} <= stages_that_dvc_sees()
    chosen = yaml.safe_load((workspace / "recipes/chosen.yaml").read_text())
    assert chosen["recipe_names"] == ["cifar10", "seed"]
    assert [*chosen["artefacts"]][:2] == ["cifar10-scratch", "cifar10-scratch_int8"]


def test_candidates_that_dvc_yaml_lacks_are_named_with_what_to_write(workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("      pretrained:\n", "      tuned:\n", 1))
    shutil.copy(ROOT / "dvc.yaml", workspace)
    with pytest.raises(
        ValueError, match=r"(?s)dvc\.yaml does not have.*digits-tuned: {recipe: digits, candidate: tuned}"
    ):
        runner.choose("digits")


def stages_that_dvc_sees() -> set[str]:
    """Return the stages without their files."""
    listing = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {line.rpartition(":")[2] for line in listing.stdout.split()}


def test_a_folder_without_a_repository_needs_no_git(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc/config").write_text("")
    (workspace / "dvc.yaml").write_text("stages: {a: {cmd: echo}}")
    assert [*runner.stale(["a"])] == ["a"]
    (workspace / ".git").mkdir()
    with pytest.raises(runner.StageFailed):  # DVC follows Git again, which is broken here
        runner.stale(["a"])


def test_a_stage_runs_once_and_is_then_unchanged(toy: Toy) -> None:
    workspace, lines = toy(), []
    assert runner.stale(["ingest@digits"]) == {"ingest@digits": "missing data/digits"}
    first, second = (runner.run_stage("ingest@digits", lines.append) for _ in range(2))
    assert (first.outcome, first.changed, second.outcome, second.changed) == ("ran", True, "unchanged", False)
    assert runner.stale(["ingest@digits"]) == {}
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


@pytest.fixture
def damaged(toy: Toy) -> Path:
    """A workspace whose DVC cache has a trained candidate's learning curve damaged, and whose remote has it whole."""
    workspace = toy()
    (workspace / ".dvc/config").write_text(
        "[core]\n no_scm = true\n remote = local\n['remote \"local\"']\n url = ../remote\n"
    )
    (workspace / "data/digits").mkdir(parents=True)
    (workspace / "reports/digits").mkdir(parents=True)
    (workspace / "reports/digits/validation.json").write_text("{}")
    runner.run_stage("train@digits-scratch", str)
    subprocess.run([sys.executable, "-m", "dvc", "push", "-q", "train@digits-scratch"], check=True)
    curve = workspace / "models/digits/scratch/history.csv"
    md5 = hashlib.md5(curve.read_bytes()).hexdigest()
    (cached := workspace / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    cached.write_text("epoch\n1\n")
    cached.chmod(0o444)  # DVC takes content that is read-only for whole
    curve.rename(workspace / "expected.csv")
    (workspace / "ran.txt").unlink()
    return workspace


def test_damaged_content_of_the_cache_is_fetched_again(damaged: Path) -> None:
    lines: list[str] = []
    assert runner.run_stage("train@digits-scratch", lines.append).outcome == "restored"
    assert "warning: damaged in DVC's cache: models/digits/scratch/history.csv; fetched from the DVC remote" in lines
    assert (damaged / "models/digits/scratch/history.csv").read_text() == (damaged / "expected.csv").read_text()
    assert ran(damaged) == []


def test_a_stage_whose_output_is_nowhere_whole_says_why_it_runs(damaged: Path) -> None:
    shutil.rmtree(damaged / "remote")
    lines: list[str] = []
    assert runner.run_stage("train@digits-scratch", lines.append).outcome == "ran"
    assert any(line.endswith("not in the DVC remote, so train@digits-scratch runs again") for line in lines)
    assert (damaged / "models/digits/scratch/history.csv").read_text() == (damaged / "expected.csv").read_text()


def test_a_damaged_listing_of_a_folder_is_the_folder_s_damage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "dvc.lock").write_text(
        "stages: {ingest@digits: {outs: [{path: data/digits, md5: 99914b932bd37a50b983c5e7c90ae93b.dir}]}}"
    )
    (workspace / ".dvc/tmp").mkdir(parents=True)
    listing = workspace / "files/md5/99/914b932bd37a50b983c5e7c90ae93b.dir"
    listing.parent.mkdir(parents=True)
    monkeypatch.setattr(runner, "_cache", lambda: workspace)
    damage = []
    for content in ("{}", "[]"):  # the MD5 is that of {}
        listing.write_text(content)
        damage.append([str(path) for path in runner._damaged("ingest@digits")])
    assert damage == [[], ["data/digits"]]


def test_a_stage_that_did_not_run_has_dvc_s_reason() -> None:
    line = "ERROR: failed to reproduce 'ingest@digits': output 'data' is outside"
    failure = runner.StageFailed("ingest@digits", 255, ["Stage 'a' didn't change, skipping", line])
    assert failure.cause == "output 'data' is outside"


def test_a_stage_that_ran_and_failed_has_its_own_last_line() -> None:
    line = "ERROR: failed to reproduce 'ingest@digits': failed to run: python x, exited with 1"
    assert runner.StageFailed("ingest@digits", 1, ["KeyError: 'a'", line]).cause == "KeyError: 'a'"


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
    assert [*runner.stale(["ingest@digits"])] == ["ingest@digits"]
    (workspace / ".dvc/tmp/rwlock").write_text('{"read": ')
    assert runner.run_stage("ingest@digits", str).outcome == "ran"


def test_the_lock_of_a_killed_dvc_is_cleared_though_another_program_has_its_number(toy: Toy) -> None:
    workspace = toy()
    (workspace / ".dvc/tmp").mkdir(exist_ok=True)
    with subprocess.Popen(["sleep", "900"]) as other:
        killed = {"pid": other.pid, "cmd": "dvc repro"}
        lock = {"read": {}, "write": {str(workspace / "data"): killed, str(workspace / "models"): killed}}
        (workspace / ".dvc/tmp/rwlock").write_text(json.dumps(lock))
        assert runner.run_stage("ingest@digits", str).outcome == "ran"
        other.kill()


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


@pytest.fixture
def lock(toy: Toy) -> Path:
    """DVC's lock, by hard links (see tests/hostile/dvc), in a workspace where it is held for seconds before `train`."""
    workspace = toy()
    for name in ("ingest@digits", "validate@digits", "train@digits-scratch"):
        runner.run_stage(name, str)
    os.truncate(workspace / "setting.txt", 2**32)  # DVC reads it, while it has the lock
    return workspace / ".dvc/tmp/lock"


def test_dvc_that_is_stopped_leaves_no_lock(lock: Path) -> None:
    with process.grouped() as group, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (wait_until(lambda: lock.exists() and lock.stat().st_nlink == 2), group.end()))
        with pytest.raises(KeyboardInterrupt):
            runner.run_stage("train@digits-scratch", str)
    assert not lock.exists()


def test_the_lock_of_a_killed_dvc_is_named_and_the_run_goes_on_without_it(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = toy() / ".dvc/tmp/lock"
    monkeypatch.setattr(dvc, "LOCK_SECONDS", 1.0)
    program = "import os\nfrom mobilenet_pipeline.stages import dvc\nwith dvc.holding('lock'): os._exit(1)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 1
    with pytest.raises(runner.StageFailed, match=r"\.dvc/tmp/lock is .*, delete the file$") as error:
        runner.run_stage("ingest@digits", str)
    assert runner.may_pass_again(error.value)
    lock.unlink()
    assert runner.run_stage("ingest@digits", str).outcome == "ran"


def test_the_lock_of_a_dvc_that_works_here_is_waited_for(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc, "LOCK_SECONDS", 0.0)
    with subprocess.Popen([*dvc.COMMAND, "status"], stdout=subprocess.DEVNULL):
        wait_until(lambda: dvc._claim(lock))
        assert runner.stale(["train@digits-scratch"]) == {"train@digits-scratch": "modified setting.txt"}


def test_a_question_to_dvc_that_is_given_up_leaves_no_lock(lock: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        dvc.run("status", seconds=2)
    assert not lock.exists()


def test_a_killed_caller_ends_its_stage(toy: Toy) -> None:
    workspace = toy(sleep={"ingest": 60})
    command = "from mobilenet_pipeline.stages.runner import run_stage; run_stage('ingest@digits', print)"
    caller = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL)
    stage = read_process(workspace)
    caller.kill()
    caller.wait()
    wait_until(lambda: not alive(stage))
