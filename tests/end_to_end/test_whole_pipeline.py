"""The real digits recipe, shortened, through real DVC, Prefect, MLflow and BentoML: one run, seen from all sides."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


def command(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    program = [str(Path(sys.executable).with_name("mobilenet-pipeline")), *words]
    return subprocess.run(program, cwd=workspace, env=env, capture_output=True, text=True, check=False)


def shorten(params: str) -> str:
    """Two epochs of the small network: enough to see that everything works, not to be good."""
    params = re.sub(r"epochs: \d+", "epochs: 2", params)
    return params.replace("strides: stem-1", "strides: stock").replace("accuracy_floor: 0.9", "accuracy_floor: 0.01")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(shorten((ROOT / "params.yaml").read_text()))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    remote = ["remote", "add", "-d", "local", str(folder / "remote")]
    subprocess.run([sys.executable, "-m", "dvc", *remote], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def first(workspace: Path) -> subprocess.CompletedProcess[str]:
    done = command(workspace, "run", "--recipe", "digits")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def second(workspace: Path, first: object) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    return command(workspace, "run", "--recipe", "digits"), time.monotonic() - started


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_ends_with_both_candidates_and_the_next_commands(first):
    assert "scratch" in first.stdout
    assert "pretrained" in first.stdout
    assert "make serve" in first.stdout


def test_the_first_run_promotes_the_better_candidate(workspace, first):
    verdict = read(workspace / "reports" / "digits" / "verdict.json")
    accuracies = {name: row["accuracy"] for name, row in verdict["candidates"].items()}
    assert verdict["promote"]
    assert accuracies[verdict["winner"]] == max(accuracies.values())


def test_the_champion_of_the_registry_is_the_served_artefact(workspace, first):
    from mlflow import MlflowClient

    verdict = read(workspace / "reports" / "digits" / "verdict.json")
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    version = client.get_model_version_by_alias("digits-mobilenet", "champion")
    assert version.tags["artefact_sha256"] == verdict["artefacts"][verdict["winner"]]


def test_the_pretrained_candidate_starts_from_the_bundled_checkpoint(workspace, first):
    assert "CIFAR-10 checkpoint" in read(workspace / "models" / "digits" / "pretrained" / "training.json")["weights"]


def test_the_run_in_mlflow_has_curve_data_and_origin(workspace, first):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    run = client.get_run(read(workspace / "models" / "digits" / "scratch" / "training.json")["run_id"])
    assert len(client.get_metric_history(run.info.run_id, "validation_accuracy")) == 2
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert run.data.tags["mlflow.parentRunId"]
    assert run.data.tags["data_version"].endswith(".dir")


def test_the_report_holds_both_candidates(workspace, first):
    page = (workspace / "reports" / "digits" / "index.html").read_text(encoding="utf-8")
    assert "scratch" in page
    assert "pretrained" in page
    assert not re.search(r"<(img|script|link)[^>]+https?://", page)


def test_the_artefact_answers_like_its_model(workspace, first):
    parity = read(workspace / "models" / "digits" / "scratch" / "export.json")["parity"]
    assert (parity["rows"], parity["argmax_differences"]) == (360, 0)
    assert parity["max_probability_difference"] <= 1e-4


def test_predict_prints_all_classes_for_both_models(workspace, first, tmp_path):
    from PIL import Image

    Image.new("L", (80, 60), 200).save(tmp_path / "photo.png")
    done = command(workspace, "predict", str(tmp_path / "photo.png"), "--recipe", "digits")
    assert done.returncode == 0, done.stderr
    assert all(digit in done.stdout for digit in "0123456789")
    assert "champion" in done.stdout


def test_status_says_who_is_champion(workspace, first):
    done = command(workspace, "status", "--recipe", "digits")
    assert done.returncode == 0, done.stderr
    assert "champion" in done.stdout


def test_a_second_run_has_nothing_to_do_and_says_so(second):
    done, seconds = second
    assert done.returncode == 0, done.stderr
    assert "Nothing changed" in done.stdout
    assert seconds < 90


def test_the_champion_stays_when_nothing_changed(workspace, second):
    from mlflow import MlflowClient

    versions = MlflowClient(f"sqlite:///{workspace}/mlflow.db").search_model_versions("name='digits-mobilenet'")
    assert len(versions) == 2


def test_dvc_repro_alone_agrees_that_nothing_changed(workspace, second):
    program = [sys.executable, "-m", "dvc", "status", "--json", "evaluate@digits-scratch", "evaluate@digits-pretrained"]
    done = subprocess.run(program, cwd=workspace, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


def test_an_edited_knob_runs_only_what_depends_on_it(workspace, second):
    params = workspace / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("learning_rate: 0.05", "learning_rate: 0.04", 1))
    program = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(program, cwd=workspace, capture_output=True, text=True, check=True)
    params.write_text(before)
    stale = {name for name in json.loads(done.stdout) if "digits" in name}
    assert stale == {"train@digits-scratch"}


def test_the_dataset_can_be_pushed_to_the_remote(workspace, second):
    push = [sys.executable, "-m", "dvc", "push", "ingest@digits"]
    done = subprocess.run(push, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any((workspace / "remote").rglob("*.dir"))
