"""Each check on an installation that is well, and on one that is not; no check ends with a traceback."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from registry_fixtures import Packaging, Runs
from toy_fixtures import Toy

from mobilenet_pipeline import cli
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations import doctor
from mobilenet_pipeline.operations.doctor import Check, Finding
from mobilenet_pipeline.registry import versions
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.workspace import history, paths
from mobilenet_pipeline.workspace.history import Event

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(".")


def found(check: Check, recipe: Recipe, name: str = "") -> list[tuple[str, str]]:
    """Return (state, sentence) of the check's findings, of those called `name` if it is given."""
    findings = doctor._guarded("check", check, recipe, HERE)
    return [(finding.state, finding.sentence) for finding in findings if name in ("", finding.name)]


def states(check: Check, recipe: Recipe) -> list[str]:
    return [state for state, _ in found(check, recipe)]


def test_a_fresh_folder_has_no_failure(workspace: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_VERY_LITTLE", 0)
    assert [finding for finding in doctor.examine(recipe) if finding.state == "fail"] == []


def test_a_fresh_folder_stays_as_it_is(workspace: Path, recipe: Recipe) -> None:
    list(doctor.examine(recipe))
    assert [path.name for path in workspace.iterdir()] == ["params.yaml"]


def test_a_crash_of_a_check_is_a_finding(recipe: Recipe) -> None:
    def crash(*_: object) -> Iterator[Finding]:
        yield Finding("first", "ok", "well")
        raise KeyError("unexpected")

    assert found(crash, recipe) == [("ok", "well"), ("fail", "KeyError: 'unexpected'")]


def test_a_missing_package_is_a_finding_with_its_remedy(recipe: Recipe) -> None:
    def crash(*_: object) -> Iterator[Finding]:
        raise ModuleNotFoundError("No module named 'mlflow'")

    (finding,) = doctor._guarded("registry", crash, recipe, HERE)
    assert (finding.sentence, finding.remedy) == ("ModuleNotFoundError: No module named 'mlflow'", "make install")


def test_a_check_without_an_end_is_a_finding(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIMIT_SECONDS", 0.05)
    stop = threading.Event()
    assert found(lambda *_: iter(lambda: stop.wait(30), True), recipe) == [("fail", "no result after 0 s")]
    stop.set()


def test_a_package_outside_of_its_bounds_fails(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.155.0" if name == "fastapi" else installed(name))
    assert found(doctor.check_python, recipe, "packages")[0] == (
        "fail",
        "fastapi 0.155.0 is installed, <0.151 is needed",
    )


def test_a_package_that_the_lock_has_in_another_version_is_a_warning(workspace: Path, recipe: Recipe) -> None:
    (workspace / "requirements.lock").write_text("numpy==2.0.0 ; python_version >= '3.11' \\\n    --hash=sha256:0\n")
    ((state, sentence),) = found(doctor.check_python, recipe, "packages")
    assert (state, "numpy 2." in sentence) == ("warn", True)


def test_the_installed_packages_are_those_of_the_lock(workspace: Path, recipe: Recipe) -> None:
    shutil.copyfile(ROOT / "requirements.lock", workspace / "requirements.lock")
    assert states(doctor.check_python, recipe) == ["ok", "ok"]


def test_a_folder_without_git_is_a_warning(workspace: Path, recipe: Recipe) -> None:
    assert found(doctor.check_tools, recipe, "Git") == [("warn", "trainings record no commit")]


def test_a_keras_json_of_another_project_is_named(recipe: Recipe) -> None:
    ((state, sentence),) = found(doctor.check_keras, recipe)  # that of tests/hostile
    assert (state, "hostile" in sentence) == ("ok", True)


def test_another_keras_home_fails(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(ROOT / "tests" / "hostile"))
    assert states(doctor.check_keras, recipe) == ["fail"]


@pytest.mark.parametrize(("visible", "expected"), [("", 0), ("-1", 0), ("1,-1,0", 1), ("0, 1", 2)])
def test_gpus_that_cuda_hides_are_not_expected(
    visible: str, expected: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0: H200\necho GPU 1: H200\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(doctor, "_installed", lambda _: "9.0")
    monkeypatch.setattr(doctor, "_output", Output(f"0\n{expected}"))
    state, sentence = found(doctor.check_gpus, recipe, "GPUs")[0]
    hidden = f"CUDA_VISIBLE_DEVICES is {visible!r}, so trainings use the CPU"
    assert (state, sentence) == ("ok", f"TensorFlow sees all {expected}" if expected else hidden)


class Output:
    """Runs nvidia-smi, and answers for TensorFlow."""

    def __init__(self, tensorflow: str) -> None:
        self.tensorflow, self.run = tensorflow, doctor._output

    def __call__(self, command: list[str], seconds: float) -> str | None:
        return self.run(command, seconds) if command[-1] == "-L" else self.tensorflow


@pytest.mark.parametrize(("free", "state"), [(2**40, "ok"), (2**32, "warn"), (2**20, "fail")])
def test_a_full_disk_is_found(
    workspace: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = shutil.disk_usage(workspace)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert set(states(doctor.check_disks, recipe)) == {state}


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server whose clock is an hour late."""

    class Late(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((datetime.now(UTC) - timedelta(hours=1)).timestamp())

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
        server.shutdown()


def test_a_server_with_another_time_fails(workspace: Path, recipe: Recipe, slow_clock: str) -> None:
    ((state, sentence),) = found(doctor.check_clock, recipe)
    assert (state, slow_clock in sentence, "by 3," in sentence) == ("fail", True, True)


def test_an_event_in_the_future_is_a_warning(workspace: Path, recipe: Recipe) -> None:
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat(timespec="seconds")
    history.append(recipe, Event("promoted", "1", "the gate", "", None, "1", "r", 0.9, at=later))
    assert states(doctor.check_clock, recipe) == ["warn"]


def test_a_server_behind_a_proxy_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com:5000")
    ((state, sentence),) = found(doctor.check_proxies, recipe)  # the tests' own proxy
    assert (state, "mlflow.example.com (MLFLOW_TRACKING_URI) pass a proxy" in sentence) == ("warn", True)


def test_a_server_that_no_proxy_names_is_well(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com:5000")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, f"{os.environ.get(name, '')},example.com")
    assert states(doctor.check_proxies, recipe) == ["ok"]


def test_a_changed_history_fails(recipe: Recipe, runs: Runs) -> None:
    runs((181, 183))
    path = paths.history_path(recipe)
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    ((state, sentence),) = found(doctor.check_history, recipe)
    assert (state, "history.jsonl" in sentence) == ("fail", True)


def test_a_whole_registry_is_well(recipe: Recipe, runs: Runs) -> None:
    runs((181, 183), (182, 195))
    assert states(doctor.check_registry, recipe) == ["ok"] * 4


def test_a_damaged_artefact_of_the_champion_fails(recipe: Recipe, runs: Runs, store: Path) -> None:
    runs((181, 183), (182, 195))
    run = versions.find(recipe.registered_model, "4").run_id
    (store / "mlruns" / recipe.name / run / "artifacts/served/model.tflite").write_bytes(b"damaged")
    ((state, sentence),) = found(doctor.check_registry, recipe, "champion")
    assert (state, "model.tflite of digits-mobilenet version 4" in sentence) == ("fail", True)


def test_an_emptied_artefact_store_is_filled_from_other_copies(
    recipe: Recipe, runs: Runs, store: Path, dvc_copy: Callable[[], None]
) -> None:
    runs((181, 183), (182, 195))
    dvc_copy()
    shutil.rmtree(store / "mlruns" / recipe.name)
    (store / "mlruns" / recipe.name).mkdir()
    assert doctor.repair(recipe) == [
        f"MLflow had lost the artefact of version {number}; it is restored." for number in (4, 2)
    ]
    assert states(doctor.check_registry, recipe) == ["ok"] * 4


@pytest.fixture
def dvc_copy(recipe: Recipe) -> Callable[[], None]:
    """Puts artefact and predictions of version 2 into DVC's cache, and its metadata into the Bento store."""

    def put() -> None:
        version = versions.find(recipe.registered_model, "2")
        served = Path("mlruns") / recipe.name / version.run_id / "artifacts" / "served"
        for source, target in (
            ("model.tflite", Path(".dvc/cache/files/md5/aa/bb")),
            ("predictions.npz", Path(".dvc/cache/files/md5/cc/dd")),
            ("metadata.json", Path(".bentoml/models/digits-mobilenet/2-copy/metadata.json")),
        ):
            target.parent.mkdir(parents=True)
            shutil.copyfile(served / source, target)

    return put


def test_a_lost_bento_is_built_again(recipe: Recipe, runs: Runs, packaging: Packaging) -> None:
    runs((181, 183), (182, 195))
    packaging.pointer = None
    assert doctor.repair(recipe) == ["The Bento was lost; digits-mobilenet:2 is live."]


def test_there_is_nothing_to_repair_in_a_whole_workspace(recipe: Recipe, runs: Runs) -> None:
    runs((181, 183), (182, 195))
    assert doctor.repair(recipe) == []


def test_a_bento_of_another_version_fails(recipe: Recipe, runs: Runs, packaging: Packaging) -> None:
    runs((181, 183), (182, 195))
    packaging.put_live(packaging.bentos[0].tag)
    ((state, sentence),) = found(doctor.check_registry, recipe, "Bento")
    assert (state, "serves version 2 as champion" in sentence) == ("fail", True)


def test_a_registry_that_does_not_answer_fails(
    workspace: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ((state, sentence),) = found(doctor.check_registry, recipe)
    assert (state, "no MLflow server answers at http://127.0.0.1:9" in sentence) == ("fail", True)


def test_a_damaged_database_fails(recipe: Recipe, runs: Runs, store: Path) -> None:
    runs((181, 183))
    (store / "mlflow.db").write_bytes(b"not a database " * 100)
    assert states(doctor.check_registry, recipe) == ["fail"]


def test_outputs_that_only_this_cache_has_are_a_warning(toy: Toy, recipe: Recipe) -> None:
    workspace = toy()
    doctor.cache.run("remote", "add", "--default", "local", str(workspace / "remote"))
    runner.run_stage("ingest@digits", print)
    assert states(doctor.check_dvc, recipe) == ["warn"]
    doctor.cache.run("push", "--quiet")
    assert states(doctor.check_dvc, recipe) == ["ok"]


def test_a_remote_that_dvc_does_not_use_yet_is_a_warning(
    toy: Toy, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy()
    monkeypatch.setenv("MOBILENET_PIPELINE_DVC_REMOTE", "s3://team/dvc")
    assert found(doctor.check_dvc, recipe) == [
        ("warn", "DVC does not use s3://team/dvc (MOBILENET_PIPELINE_DVC_REMOTE) here yet")
    ]


def test_a_remote_that_is_away_fails(toy: Toy, recipe: Recipe) -> None:
    toy()
    runner.run_stage("ingest@digits", print)
    ((state, sentence),) = found(doctor.check_dvc, recipe)
    assert (state, "no remote" in sentence) == ("fail", True)


def test_a_failure_gives_exit_code_1(workspace: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("disk", "fail", "it is full", "free space"), Finding("Git", "warn", "there is none")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(findings))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "✗ disk        it is full",
        "              → free space",
        "! Git         there is none",
    ]


def test_warnings_alone_give_exit_code_0(workspace: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([Finding("Git", "warn", "there is none")]))
    assert cli.main(["doctor", "--json"]) == 0
    assert '"state": "warn"' in capsys.readouterr().out
