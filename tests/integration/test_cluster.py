"""Trainings on a Ray cluster of two nodes, and what happens if a part of it is lost; in the order of the file."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from team_servers import BIN, ROOT
from waiting import wait_until

pytest.importorskip("ray", reason="Ray is not installed: make cluster")

from ray_nodes import RAY, Nodes, can_hide
from ruamel.yaml import YAML

Curve = list[dict[str, float]]
SHORT = {"epochs": 2, "shift": 0}
LONG = {"epochs": 40, "shift": 0, "workers": 2, "sync_norm": False, "batch_size": 64}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        nodes.mend()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which digits was ingested."""
    folder = tmp_path_factory.mktemp("cluster") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for stage in ("ingest", "validate"):
        assert run(folder, stage, "digits").returncode == 0
    return folder


def environment_of(folder: Path, **variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "PREFECT_"))}
    paths = {"PYTHONPATH": f"{folder / 'src'}:{folder}", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {**own, **paths, **RAY, "MOBILENET_PIPELINE_PEER_SECONDS": "900", **variables}


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a stage to its end."""
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline.stages", *words]
    env = environment_of(folder, **variables)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


class Training:
    """A stage `train` that runs in the background; `folder` has the outputs."""

    def __init__(self, workspace: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.folder, self.process, self.log = workspace / "models/digits/pretrained", process, log

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def reaches(self, word: str) -> None:
        """Wait until the log has the word."""
        wait_until(lambda: word in self.text or self.process.poll() is not None, lambda: self.text)
        assert word in self.text, self.text

    def ends(self) -> int:
        """Wait for the end, and return the exit code."""
        return int(wait_until(lambda: (code := self.process.poll()) is not None and str(code), lambda: self.text))

    def curve(self) -> Curve:
        with (self.folder / "history.csv").open() as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    def facts(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "training.json").read_text()))


def set_candidate(workspace: Path, changes: Mapping[str, Any]) -> None:
    """Give digits' candidate `pretrained` other settings than those of the repository."""
    yaml, path = YAML(), workspace / "params.yaml"
    document = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    document["recipes"]["digits"]["candidates"]["pretrained"].update(changes)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)


@contextmanager
def training(workspace: Path, log: Path, changes: Mapping[str, Any], **variables: str) -> Iterator[Training]:
    """Train in the `with` body; what it has left is removed after it."""
    set_candidate(workspace, changes)
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline.stages", "train", "digits", "pretrained"]
    with log.open("ab") as file:
        env = environment_of(workspace, **variables)
        process = subprocess.Popen(command, cwd=workspace, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Training(workspace, process, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def on(nodes: Nodes) -> dict[str, str]:
    """The variables with which a training finds the cluster."""
    return {"MOBILENET_PIPELINE_CLUSTER": "auto", "RAY_ADDRESS": nodes.address}


@pytest.fixture
def clean(workspace: Path, nodes: Nodes) -> Iterator[Path]:
    """The workspace without what trainings leave, and a whole cluster."""
    nodes.mend()
    yield workspace
    shutil.rmtree(workspace / "models", ignore_errors=True)


def curve_of(workspace: Path, log: Path, changes: Mapping[str, Any], **variables: str) -> Curve:
    """Train to the end, and return the learning curve."""
    with training(workspace, log, changes, **variables) as one:
        assert one.ends() == 0, one.text
        return one.curve()


@pytest.fixture(scope="module")
def one_process(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """The curve of a training in its stage's own process, with a thread as each worker has."""
    changes = {**SHORT, "batch_size": 32, "learning_rate": 0.001, "precision": "float32"}
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    return curve_of(workspace, tmp_path_factory.mktemp("one") / "log", changes, **threads)


def losses(curve: Curve) -> list[float]:
    return [row["train_loss"] for row in curve]


def test_one_worker_has_the_losses_of_a_training_here(clean, on, one_process, tmp_path):
    curve = curve_of(clean, tmp_path / "log", {**SHORT, "batch_size": 32, "learning_rate": 0.001}, **on)
    assert losses(curve) == pytest.approx(losses(one_process), abs=1e-5)


def test_two_workers_have_the_losses_of_one_at_the_same_global_batch(clean, on, one_process, tmp_path):
    halves = {"workers": 2, "batch_size": 16, "learning_rate": 0.0005, "sync_norm": True}
    curve = curve_of(clean, tmp_path / "log", {**SHORT, **halves}, **on)
    # Sums of two parts are rounded otherwise, and the differences grow from step to step: 36 an epoch.
    assert losses(curve)[0] == pytest.approx(losses(one_process)[0], rel=1e-4)
    assert losses(curve) == pytest.approx(losses(one_process), rel=2e-3)


@pytest.fixture(scope="module")
def uninterrupted(workspace: Path, nodes: Nodes, on: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """The curve of two workers that nothing happens to."""
    nodes.mend()
    return curve_of(workspace, tmp_path_factory.mktemp("whole") / "log", LONG, **on)


def difference(curve: Curve, other: Curve) -> float:
    """Return the largest difference of losses and accuracies of two trainings."""
    keys = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return max(abs(one[key] - two[key]) for one, two in zip(curve, other, strict=True) for key in keys)


def same(curve: Curve, other: Curve, event: str, said: str, text: str) -> bool:
    """Return whether two trainings are the same, and record what happened to the first.

    `make bench-cluster` sets the file of the record.
    """
    largest = difference(curve, other)
    note(event, said, text, largest)
    return largest < 1e-5


def note(event: str, said: str, text: str, largest: float | None = None) -> None:
    """Record the line with which a training answered an event, and how much its result differs."""
    line = next(line for line in text.splitlines() if said in line)
    if record := os.environ.get("CLUSTER_RECORD"):
        with Path(record).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "said": line.strip(), "largest_difference": largest}) + "\n")


def test_ray_starts_killed_workers_again_and_the_result_is_the_same(clean, nodes, on, uninterrupted, tmp_path):
    with training(clean, tmp_path / "log", LONG, **on) as one:
        one.reaches("epoch 3/40")
        nodes.workers()[0].kill()
        assert one.ends() == 0, one.text
        assert "Ray starts all workers again (1 of 3)" in one.text
        assert same(one.curve(), uninterrupted, "a worker is killed", "is lost: ", one.text)


def test_a_fourth_loss_is_an_error_and_the_state_is_kept(clean, nodes, on, tmp_path):
    with training(clean, tmp_path / "log", LONG, **on) as one:
        one.reaches("epoch 1/40")
        for starts in range(1, 5):
            wait_until(lambda count=starts: one.text.count("training on Coll") == count, lambda: one.text)
            nodes.workers()[0].kill()
        assert one.ends() == os.EX_TEMPFAIL
        assert re.search("error: the workers were lost 4 times: .*; the next run continues from", one.text), one.text
        note("workers are killed four times", "error: ", one.text)


def test_a_lost_node_is_waited_for_and_the_result_is_the_same(clean, nodes, on, uninterrupted, tmp_path):
    with training(clean, tmp_path / "log", LONG, **on) as one:
        one.reaches("epoch 3/40")
        nodes.kill("second")
        one.reaches("the cluster has room for 1: waiting")
        nodes.add("second")
        assert one.ends() == 0, one.text
        assert same(one.curve(), uninterrupted, "a node is lost, and joins again", "room for 1: waiting", one.text)


def test_a_stopped_training_leaves_its_state_and_no_workers(clean, nodes, on, uninterrupted, tmp_path):
    with training(clean, tmp_path / "log", LONG, **on) as one:
        one.reaches("epoch 3/40")
        one.process.send_signal(signal.SIGTERM)
        assert one.ends() == 128 + signal.SIGTERM
        assert "the next run continues from" in one.text
    wait_until(lambda: not nodes.workers(), lambda: str(nodes.workers()))
    curve = curve_of(clean, tmp_path / "next", LONG, **on)
    assert same(curve, uninterrupted, "the training is stopped", "stop requested", one.text)
    assert "continuing after step" in (tmp_path / "next").read_text()


def test_the_workers_of_a_killed_stage_end_and_the_next_run_goes_on(clean, nodes, on, uninterrupted, tmp_path):
    with training(clean, tmp_path / "log", LONG, **on) as one:
        one.reaches("epoch 3/40")
        one.process.kill()
        one.ends()
    wait_until(lambda: not nodes.workers(), lambda: str(nodes.workers()))
    curve = curve_of(clean, tmp_path / "next", LONG, **on)
    text = (tmp_path / "next").read_text()
    assert same(curve, uninterrupted, "the stage is killed; then the next run", "continuing after step", text)


def test_fewer_workers_go_on_with_the_same_global_batch_where_the_recipe_allows_it(clean, nodes, on, tmp_path):
    patient = {"MOBILENET_PIPELINE_PEER_SECONDS": "20"}
    with training(clean, tmp_path / "log", {**LONG, "fewer_workers": True}, **on, **patient) as one:
        one.reaches("epoch 3/40")
        nodes.kill("second")
        one.reaches("room for 1: 1 train, with the same global batch")
        assert one.ends() == 0, one.text
        facts = one.facts()
        assert (facts["replicas"], facts["planned_replicas"], facts["global_batch"]) == (1, 2, 128)
        note("a node is lost, fewer_workers", "same global batch", one.text)


def test_without_enough_nodes_the_run_fails_with_a_sentence(clean, on, tmp_path):
    with training(clean, tmp_path / "log", {**LONG, "workers": 3}, **on, MOBILENET_PIPELINE_PEER_SECONDS="3") as one:
        assert one.ends() == os.EX_TEMPFAIL
        assert "error: pretrained has 3 workers of 1 CPU, and the cluster has room for 2, after 3 s" in one.text
        note("too few nodes from the start", "error: ", one.text)


def test_a_machine_on_which_no_worker_starts_is_an_error_with_the_reason(clean, nodes, on, tmp_path):
    nodes.kill("second")
    nodes.add("second", SSL_CERT_FILE=str(tmp_path / "nothing.pem"))
    wait_until(lambda: nodes.cpus() == 2, nodes.text)
    with training(clean, tmp_path / "log", LONG, **on) as one:
        assert one.ends() == os.EX_TEMPFAIL
        assert re.search("error: the workers of pretrained cannot start: .*see the logs of its machines", one.text)
        note("a machine on which no worker starts", "error: ", one.text)
    nodes.kill("second")


@pytest.mark.skipif(not can_hide(), reason="this user may not start a process that does not see a folder (unshare)")
def test_the_dataset_reaches_a_machine_that_does_not_share_the_workspace(clean, nodes, on, tmp_path):
    nodes.kill("second")
    nodes.add("second", hidden=clean)
    wait_until(lambda: nodes.cpus() == 2, nodes.text)
    with training(clean, tmp_path / "log", {**SHORT, "workers": 2}, **on) as one:
        assert one.ends() == 0, one.text
        assert "the dataset comes through Ray's object store" in one.text
    nodes.kill("second")


def test_the_head_s_end_is_an_error_and_the_next_run_goes_on(clean, nodes, on, uninterrupted, tmp_path):
    # Ray's client server finds a node by its address, and the killed one had the same.
    nodes.stop()
    nodes.mend()
    client = {"MOBILENET_PIPELINE_CLUSTER": f"ray://127.0.0.1:{nodes.client}"}
    with training(clean, tmp_path / "log", LONG, **client) as one:
        one.reaches("epoch 3/40")
        nodes.kill("head")
        assert one.ends() == os.EX_TEMPFAIL
        assert "is gone; the next run continues from" in one.text
    nodes.mend()
    curve = curve_of(clean, tmp_path / "next", LONG, **on)
    assert same(curve, uninterrupted, "the head is lost; then the next run", "is gone", one.text)


def whole_run(workspace: Path, log: Path, stop_at: str | None, **variables: str) -> int:
    """Run the pipeline on digits, press Ctrl-C when the log has the words `stop_at`, and return the exit code."""
    command = [str(BIN / "mobilenet-pipeline"), "run", "--recipe", "digits", "--cluster", "auto"]
    with log.open("wb") as file:
        env = environment_of(workspace, **variables)
        process = subprocess.Popen(command, cwd=workspace, env=env, stdout=file, stderr=subprocess.STDOUT)
    if stop_at:
        wait_until(lambda: stop_at in log.read_text() or process.poll() is not None, log.read_text)
        process.send_signal(signal.SIGINT)
    wait_until(lambda: process.poll() is not None, log.read_text)
    return process.returncode


def test_a_run_that_is_stopped_and_run_again_promotes(clean, on, tmp_path):
    set_candidate(clean, {**LONG, "epochs": 20})
    here = {"RAY_ADDRESS": on["RAY_ADDRESS"]}
    first, second = tmp_path / "first", tmp_path / "second"
    assert whole_run(clean, first, "epoch 3/20", **here) != 0
    assert "the next run continues from" in first.read_text(), first.read_text()
    assert whole_run(clean, second, None, **here) == 0, second.read_text()
    text = second.read_text()
    assert "continuing after step" in text
    assert "worker 2 of 2 runs on" in text
    assert re.search(r"is promoted: |is champion", text)
