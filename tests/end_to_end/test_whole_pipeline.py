"""The shortened digits recipe through real DVC, Prefect, MLflow and BentoML: one run, looked at from all sides."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

Done = subprocess.CompletedProcess[str]


def command(workspace: Path, *words: str) -> Done:
    """Run `mobilenet-pipeline` in the workspace."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    program = [str(Path(sys.executable).with_name("mobilenet-pipeline")), *words]
    return subprocess.run(program, cwd=workspace, env=env, capture_output=True, text=True, check=False)


def dvc(workspace: Path, *words: str) -> Done:
    """Run DVC in the workspace."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    program = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(program, cwd=workspace, env=env, capture_output=True, text=True, check=False)


def shorten(params: str) -> str:
    """Return params.yaml with two epochs of the small network: enough to test the pipeline, not to be good."""
    params = re.sub(r"epochs: \d+", "epochs: 2", params)
    return (
        params.replace("strides: stem-1", "strides: stock")
        .replace("accuracy_floor: 0.9", "accuracy_floor: 0.01")
        .replace("calibration_error: 0.05", "calibration_error: 1.0")
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_verdict(workspace: Path) -> dict[str, Any]:
    return read(workspace / "reports" / "digits" / "verdict.json")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code and settings in a folder of its own, with a DVC remote."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "gx", folder / "gx")
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(shorten((ROOT / "params.yaml").read_text()))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    remote = ["remote", "add", "-d", "local", str(folder / "remote")]
    subprocess.run([sys.executable, "-m", "dvc", *remote], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def by_hand(workspace: Path) -> Done:
    """One candidate's stages, from images to metrics, with DVC alone."""
    return dvc(workspace, "repro", "evaluate@digits-scratch")


@pytest.fixture(scope="module")
def first(workspace: Path, by_hand: Done) -> Done:
    """The first run."""
    done = command(workspace, "run", "--recipe", "digits")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def second(workspace: Path, first: Done) -> Done:
    """The second run."""
    return command(workspace, "run", "--recipe", "digits")


def test_dvc_alone_does_the_file_stages(workspace: Path, by_hand: Done) -> None:
    assert by_hand.returncode == 0, by_hand.stdout[-3000:] + by_hand.stderr[-3000:]
    stages = re.findall(r"Running stage '(.+)':", by_hand.stdout)
    assert stages == [f"{stage}@digits" for stage in ("ingest", "validate")] + [
        f"{stage}@digits-scratch" for stage in ("train", "export", "evaluate")
    ]
    assert (workspace / "metrics" / "digits" / "scratch.json").exists()
    assert not (workspace / ".prefect").exists()


def test_the_run_does_the_remaining_stages(first: Done) -> None:
    done = re.findall(r"^(\S+@\S+) ran,", first.stdout, re.M)
    assert done == [f"{stage}@digits-pretrained" for stage in ("train", "export", "evaluate")]


def test_the_run_ends_with_both_candidates_and_the_next_commands(first: Done) -> None:
    assert "scratch" in first.stdout
    assert "pretrained" in first.stdout
    assert "make serve" in first.stdout


def test_a_run_in_a_file_has_no_escape_codes(first: Done) -> None:
    assert "\x1b" not in first.stdout + first.stderr


def test_the_first_run_promotes_the_better_candidate(workspace: Path, first: Done) -> None:
    verdict = read_verdict(workspace)
    accuracies = {name: row["accuracy"] for name, row in verdict["candidates"].items()}
    assert verdict["promote"]
    assert accuracies[verdict["winner"]] == max(accuracies.values())


def test_the_champion_in_the_registry_is_the_served_artefact(workspace: Path, first: Done) -> None:
    from mlflow import MlflowClient

    verdict = read_verdict(workspace)
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    version = client.get_model_version_by_alias("digits-mobilenet", "champion")
    assert version.tags["artefact_sha256"] == verdict["artefacts"][verdict["winner"]]


def test_the_pretrained_candidate_starts_from_the_bundled_checkpoint(workspace: Path, first: Done) -> None:
    assert "CIFAR-10 checkpoint" in read(workspace / "models" / "digits" / "pretrained" / "training.json")["weights"]


def test_the_run_in_mlflow_has_curve_data_and_origin(workspace: Path, first: Done) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    run = client.get_run(read(workspace / "models" / "digits" / "pretrained" / "training.json")["run_id"])
    assert len(client.get_metric_history(run.info.run_id, "validation/accuracy")) == 2
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (parent.data.tags["verdict"], parent.inputs.dataset_inputs[0].dataset.name) == ("promoted", "digits")
    assert parent.data.metrics["test/accuracy"] > 0.5
    assert run.data.tags["data_version"].endswith(".dir")


def test_the_report_has_both_candidates_and_loads_nothing(workspace: Path, first: Done) -> None:
    page = (workspace / "reports" / "digits" / "index.html").read_text(encoding="utf-8")
    assert "scratch" in page
    assert "pretrained" in page
    assert not re.search(r"<(img|script|link)[^>]+https?://", page)


def test_the_artefact_answers_like_its_model(workspace: Path, first: Done) -> None:
    parity = read(workspace / "models" / "digits" / "scratch" / "export.json")["parity"]
    assert (parity["rows"], parity["argmax_differences"]) == (360, 0)
    assert parity["max_probability_difference"] <= 1e-4


def test_predict_prints_all_classes_for_both_models(workspace: Path, first: Done, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (80, 60), 200).save(tmp_path / "photo.png")
    done = command(workspace, "predict", str(tmp_path / "photo.png"), "--recipe", "digits")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\W+(\w+)\W+(\d+\.\d\d%)\W+(\d+\.\d\d%)", done.stdout, re.M)
    assert [name for name, *_ in rows] == [str(digit) for digit in range(10)]
    for column in (1, 2):
        assert sum(float(row[column].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.1)


def test_status_names_the_champion(workspace: Path, first: Done) -> None:
    done = command(workspace, "status", "--recipe", "digits")
    assert done.returncode == 0, done.stderr
    verdict = read_verdict(workspace)
    number = verdict["versions"][verdict["winner"]]
    assert re.search(rf"^champion +version {number}, {verdict['winner']}, test accuracy ", done.stdout, re.M)


def test_every_link_from_the_champion_to_its_data_holds(workspace: Path, first: Done) -> None:
    verdict = read_verdict(workspace)
    done = command(workspace, "trace", verdict["versions"][verdict["winner"]], "--recipe", "digits")
    assert done.returncode == 0, done.stdout + done.stderr
    links = {line.split()[1]: line[0] for line in done.stdout.splitlines()}
    assert links.pop("commit") == "?"  # this workspace is no Git repository
    assert {*links.values()} == {"✓"}
    assert {"artefact", "served", "run", "data", "validation", "verdict", "history"} <= links.keys()


def test_a_changed_image_breaks_the_link_to_the_data(workspace: Path, first: Done) -> None:
    images = workspace / "data" / "digits" / "images.npy"
    before = images.read_bytes()
    images.write_bytes(before[:-5000] + bytes([before[-5000] ^ 1]) + before[-4999:])
    done = command(workspace, "trace", "1", "--recipe", "digits")
    images.write_bytes(before)
    assert done.returncode == 1
    assert re.search(r"^✗ data .* 1 images in data/digits differ from its manifest", done.stdout, re.M)


def test_every_read_of_the_test_images_is_recorded(workspace: Path, first: Done) -> None:
    lines = (workspace / "records" / "digits" / "test_reads.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["candidate"] for line in lines) == ["pretrained", "scratch"]


def test_a_second_run_has_nothing_to_do(second: Done) -> None:
    assert second.returncode == 0, second.stderr
    assert "Nothing changed" in second.stdout
    assert not re.search(r"^\S+@\S+ ran,", second.stdout, re.M)


def test_a_run_with_nothing_to_do_starts_no_prefect(first: Done, second: Done) -> None:
    assert ["starting Prefect" in done.stdout for done in (first, second)] == [True, False]


def test_the_champion_stays_if_nothing_changed(workspace: Path, second: Done) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    verdict = read_verdict(workspace)
    champion = client.get_model_version_by_alias("digits-mobilenet", "champion")
    assert str(champion.version) == verdict["versions"][verdict["winner"]]
    assert len(client.search_model_versions("name='digits-mobilenet'")) == 2


def test_dvc_agrees_that_nothing_changed(workspace: Path, second: Done) -> None:
    done = dvc(workspace, "status", "--json", "evaluate@digits-scratch", "evaluate@digits-pretrained")
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize("words", ["repro --dry", "checkout", "plots show", "push", "pull"])
def test_dvc_s_commands_need_no_target(workspace: Path, second: Done, words: str) -> None:
    done = dvc(workspace, *words.split())
    assert (done.returncode, "ERROR" in done.stderr) == (0, False), done.stderr


def test_dvc_shows_few_metrics(workspace: Path, second: Done) -> None:
    table = dvc(workspace, "metrics", "show").stdout.splitlines()
    assert max(map(len, table)) <= 120
    assert "scratch.test " in table[0]
    assert len(table) == 3


def test_an_edited_setting_makes_only_its_stages_stale(workspace: Path, second: Done) -> None:
    params = workspace / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("learning_rate: 0.05", "learning_rate: 0.04", 1))
    done = dvc(workspace, "status", "--json")
    params.write_text(before)
    stale = {name for name in json.loads(done.stdout) if "digits" in name}
    assert stale == {"train@digits-scratch"}


def test_the_dataset_can_be_pushed_to_the_remote(workspace: Path, second: Done) -> None:
    done = dvc(workspace, "push", "ingest@digits")
    assert done.returncode == 0, done.stderr
    assert any((workspace / "remote").rglob("*.dir"))
