"""What a stage makes of its driver's messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.cluster import evaluation, job, training
from mobilenet_pipeline.training.train import Callbacks, Interrupted

ROOT = Path(__file__).resolve().parents[2]
RECIPE = config.load_recipe("digits", ROOT / "params.yaml")
DATASET: Any = SimpleNamespace(digest="d1")
ROW = {
    "learning_rate": 0.1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "validation_loss": 1.0,
    "validation_accuracy": 0.5,
    "seconds": 1.0,
    "input_size": 32,
}


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": {"epoch": number, **ROW}, "epochs": 3, "left": 1.0}


def heard(monkeypatch: pytest.MonkeyPatch, *messages: dict[str, Any]) -> list[str]:
    """Let the driver say these messages, and return what the log gets until they are over or an error is raised."""
    said: list[str] = []

    def driver(path: Path, should_stop: object) -> Iterator[dict[str, Any]]:
        yield from messages

    monkeypatch.setattr(job, "_heard", driver)
    return said


def take(said: list[str]) -> list[dict[str, Any]]:
    return list(job.messages("auto", RECIPE, "scratch", DATASET, {}, said.append))


def test_sentences_go_to_the_log_and_results_to_the_stage(monkeypatch):
    placed = {"placed": {"workers": 2, "devices": 1, "resource": "GPU"}}
    said = heard(monkeypatch, placed, {"started": 1, "workers": 2, "node": "n1"}, {"say": "hello"}, {"document": {}})
    assert take(said) == [{"document": {}}]
    assert said == ["asking Ray for 2 × 1 GPU", "worker 2 of 2 runs on n1", "hello"]


def test_a_driver_whose_workers_are_fewer_now_is_followed_by_another(monkeypatch):
    jobs: list[tuple[Any, Any]] = []

    def driver(path: Path, should_stop: object) -> Iterator[dict[str, Any]]:
        document = json.loads(path.read_text())
        jobs.append((document["workers"], document["restarts"]))
        yield {"again": {"workers": 1, "restarts": 2}} if len(jobs) == 1 else {"document": {}}

    monkeypatch.setattr(job, "_heard", driver)
    next(job.messages("auto", RECIPE, "scratch", DATASET, {"workers": 2}, print))
    assert jobs == [(2, 0), (1, 2)]


def test_an_evaluation_returns_what_the_driver_brings(monkeypatch, tmp_path):
    def driver(path: Path, should_stop: object) -> Iterator[dict[str, Any]]:
        np.savez(json.loads(path.read_text())["predictions"], rows=np.arange(3))
        yield {"started": 0, "workers": 1, "node": "n1"}
        yield {"document": {"accuracy": 0.5}}

    monkeypatch.setattr(job, "_heard", driver)
    document, arrays = evaluation.evaluate("auto", RECIPE, "scratch", tmp_path / "model.tflite", DATASET, str)
    assert (document, arrays["rows"].tolist()) == ({"accuracy": 0.5}, [0, 1, 2])


def test_a_driver_that_ends_without_a_result_means_that_the_cluster_is_gone(monkeypatch):
    said = heard(monkeypatch, {"say": "hello"}, epoch(1))
    with pytest.raises(job.ClusterError, match="the Ray cluster at auto is gone"):
        take(said)


@pytest.mark.parametrize("saved", [False, True])
def test_a_driver_that_ends_after_a_stop_request_means_that_the_training_was_stopped(monkeypatch, tmp_path, saved):
    heard(monkeypatch)
    checkpoint = tmp_path / "checkpoint.npz"
    checkpoint.write_bytes(b"state") if saved else None
    with pytest.raises(Interrupted) as stop:
        training.train("auto", RECIPE, "scratch", DATASET, Callbacks(should_stop=lambda: True), checkpoint)
    assert stop.value.saved is saved


@pytest.mark.parametrize(("told", "said"), [((), "is kept"), ((epoch(1),), "the next run continues from .*npz")])
def test_a_lost_cluster_promises_to_continue_only_what_this_training_has_saved(monkeypatch, tmp_path, told, said):
    heard(monkeypatch, *told)
    (tmp_path / "checkpoint.npz").touch()
    with pytest.raises(job.ClusterError, match=f"is gone; .*{said}$"):
        training.train("auto", RECIPE, "scratch", DATASET, Callbacks(), tmp_path / "checkpoint.npz")


@pytest.mark.parametrize(("lasting", "kind"), [(True, ValueError), (False, job.ClusterError)])
def test_an_error_of_the_driver_says_whether_another_try_may_succeed(monkeypatch, lasting, kind):
    said = heard(monkeypatch, {"error": "no room", "lasting": lasting})
    with pytest.raises(kind, match="no room"):
        take(said)


def test_epochs_that_workers_tell_again_are_told_once(monkeypatch, tmp_path):
    told: list[int] = []
    heard(monkeypatch, epoch(1), epoch(2), epoch(1), epoch(2), epoch(3))
    callbacks = Callbacks(on_epoch=lambda row, epochs, left: told.append(row.epoch))
    with pytest.raises(job.ClusterError):
        training.train("auto", RECIPE, "scratch", DATASET, callbacks, tmp_path / "checkpoint.npz")
    assert told == [1, 2, 3]


def test_a_stopped_training_says_whether_its_state_is_kept(monkeypatch, tmp_path):
    heard(monkeypatch, {"interrupted": True, "saved": True})
    with pytest.raises(Interrupted) as stop:
        training.train("auto", RECIPE, "scratch", DATASET, Callbacks(), tmp_path / "checkpoint.npz")
    assert stop.value.saved


@pytest.mark.parametrize(("workers", "batch", "fewer"), [(4, 32, [1, 2]), (4, 3, [1, 2, 3]), (1, 32, [])])
def test_fewer_workers_are_those_that_share_the_batch_equally(workers, batch, fewer):
    assert training._fewer(workers, batch) == fewer
