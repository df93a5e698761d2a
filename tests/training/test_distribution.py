"""Every training here is a process: logical devices are made before TensorFlow starts, and a worker is a process."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from mobilenet_pipeline.system import processor
from mobilenet_pipeline.training import distribution

PROGRAM = Path(__file__).with_name("distributed.py")
# Synchronised moments are exchanged in every layer, which a busy machine takes long for.
LONG = {"epochs": 200, "sync_norm": False}


def start(log: Path, replicas: int = 1, changes: dict | None = None, **variables: str) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(replicas), json.dumps(changes or {})]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **variables})


def finish(process: subprocess.Popen, log: Path) -> dict:
    process.wait()
    text = log.read_text(errors="replace")
    assert process.returncode == 0, text[-3000:]
    # The runtime of a worker may write a line after its peer has ended.
    return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))


def cluster() -> list[str]:
    """Return TF_CONFIG for two workers on this machine."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}) for index in (0, 1)
    ]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """The results of the same training on one and two logical devices."""
    folder, found = tmp_path_factory.mktemp("devices"), {}
    for count in (1, 2):
        log = folder / f"{count}.log"
        found[count] = finish(start(log, count), log)
    return found


def start_two(folder: Path, *changes: dict) -> tuple[list[subprocess.Popen], list[Path]]:
    """Start two worker processes, each with its own settings, checkpoint and log in the folder."""
    logs = [folder / f"{index}.log" for index in (0, 1)]
    started = [
        start(log, 1, change, TF_CONFIG=config, CHECKPOINT=str(log.with_suffix(".npz")))
        for log, config, change in zip(logs, cluster(), changes or ({}, {}), strict=True)
    ]
    return started, logs


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of that training on two worker processes."""
    started, logs = start_two(tmp_path_factory.mktemp("workers"))
    found = [finish(process, log) for process, log in zip(started, logs, strict=True)]
    return [one | {"checkpoint": log.with_suffix(".npz")} for one, log in zip(found, logs, strict=True)]


def test_logical_cpus_are_mirrored(devices):
    assert devices[2]["strategy"] == "MirroredStrategy over CPU:0, CPU:1"


def test_the_learning_rate_grows_with_the_replicas(devices):
    assert devices[2]["rate"] == pytest.approx(devices[1]["rate"], rel=1e-5)  # each was given 0.001 ÷ its replicas


def test_several_devices_have_the_loss_of_one_at_the_same_batch(devices):
    # 20 steps; the ten images that fill no batch are in neither.
    assert devices[1]["train"][1] < 0.97 * devices[1]["train"][0]
    assert devices[2]["train"] == pytest.approx(devices[1]["train"], rel=1e-4)


def test_two_workers_end_with_the_same_weights(workers):
    assert workers[0]["weights"] == workers[1]["weights"]


def test_two_workers_without_sync_norm_end_with_the_same_weights(tmp_path):
    changes = {"sync_norm": False, "epochs": 1}
    started, logs = start_two(tmp_path, changes, changes)
    first, second = (finish(process, log)["weights"] for process, log in zip(started, logs, strict=True))
    assert first == second


def test_two_workers_have_the_loss_of_one_process(devices, workers):
    assert workers[0]["train"] == pytest.approx(devices[2]["train"], abs=1e-5)
    assert workers[0]["train"] == pytest.approx(devices[1]["train"], rel=1e-4)


def test_only_the_first_worker_writes(workers):
    assert [worker["checkpoint"].exists() for worker in workers] == [True, False]


@pytest.mark.parametrize("difference", ["checkpoint", "settings"])
def test_workers_that_differ_say_so_and_do_not_train(workers, tmp_path, difference):
    if difference == "checkpoint":
        shutil.copy(workers[0]["checkpoint"], tmp_path)
        started, logs = start_two(tmp_path)
    else:  # with which their weights have other shapes
        started, logs = start_two(tmp_path, {"weights": "none"}, {"weights": "none", "alpha": 0.5})
    with ended(started):
        for process, log in zip(started, logs, strict=True):
            assert process.wait() != 0
            assert "the workers of TF_CONFIG differ" in log.read_text(errors="replace")


def waiting(folder: Path, limit: str = "600") -> tuple[subprocess.Popen, Path]:
    """Start the first of two workers alone."""
    log = folder / "log"
    return start(log, 1, TF_CONFIG=cluster()[0], MOBILENET_PIPELINE_PEER_SECONDS=limit), log


def test_a_worker_that_waits_for_peers_ends_when_told(tmp_path):
    process, log = waiting(tmp_path)
    with ended([process]):
        wait_for("waiting", process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


def test_a_peer_that_does_not_come_is_named(tmp_path):
    process, log = waiting(tmp_path, limit="1")
    with ended([process]):
        assert process.wait() != 0
    assert re.search(
        r"TimeoutError: 127\.0\.0\.1:\d+ of TF_CONFIG did not start within 1 s", log.read_text(errors="replace")
    )


def wait_for(line: str, process: subprocess.Popen, log: Path) -> None:
    while line not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(0.2)


@contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Kill the processes at the end, those that the `with` body added too."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_all_workers_save_and_stop_when_one_is_stopped(tmp_path):
    started, logs = start_two(tmp_path, LONG, LONG)
    with ended(started):
        wait_for("epoch 1", started[1], logs[1])
        began = time.time()
        started[1].send_signal(signal.SIGTERM)
        assert [process.wait() for process in started] == [128 + signal.SIGTERM] * 2
        assert logs[0].with_suffix(".npz").stat().st_mtime > began


def test_a_peer_without_weights_is_reported_as_gone(tmp_path):
    """It is not reported as damaged weights of the own worker."""
    weights = tmp_path / "weights" / "mobilenet_2_5_224_imagenet_no_top.weights.h5"
    weights.parent.mkdir()
    keras.applications.MobileNet((224, 224, 3), 0.25, include_top=False, weights=None).save_weights(weights)
    logs = [tmp_path / f"{index}.log" for index in (0, 1)]
    folders = [weights.parent, tmp_path]
    started = [
        start(log, 1, {"weights": "imagenet"}, TF_CONFIG=config, IMAGENET_WEIGHTS_DIR=str(folder))
        for log, config, folder in zip(logs, cluster(), folders, strict=True)
    ]
    with ended(started):
        assert all(process.wait() != 0 for process in started)
    assert "ConnectionError: another worker of TF_CONFIG is gone" in logs[0].read_text(errors="replace")
    assert "IMAGENET_WEIGHTS_DIR has no" in logs[1].read_text(errors="replace")


def test_a_killed_peer_is_an_error_and_a_restart_resumes(tmp_path):
    logs = [tmp_path / f"{index}.log" for index in (0, 1)]
    started: list[subprocess.Popen] = []
    with ended(started):
        for killed, line in enumerate(("epoch 1", "continuing after step")):
            pair = [
                start(log, 1, LONG, TF_CONFIG=config, CHECKPOINT=str(tmp_path / "checkpoint.npz"))
                for log, config in zip(logs, cluster(), strict=True)
            ]
            started += pair
            wait_for(line, pair[0], logs[0])
            wait_for("epoch", pair[0], logs[0])
            pair[killed].send_signal(signal.SIGKILL)
            assert pair[1 - killed].wait() != 0
            text = logs[1 - killed].read_text(errors="replace")
            assert "ConnectionError: another worker of TF_CONFIG is gone" in text


def test_a_training_has_only_deterministic_operations_if_wanted(tmp_path):
    changes = {"epochs": 1, "sync_norm": False, "flip": "random", "shift": 2, "cutout": 6, "muon_rate": 0.001}
    log = tmp_path / "log"
    assert finish(start(log, 1, changes, TF_DETERMINISTIC_OPS="1"), log)["train"]


@pytest.mark.parametrize(("workers", "helps"), [(1, True), (2, False)])
def test_auto_precision_of_several_workers_is_float32(monkeypatch, workers, helps):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU, for which the recipe names the precision")
    monkeypatch.setattr(processor, "computes_in_bfloat16", lambda: True)
    hosts = [f"127.0.0.1:{port}" for port in range(2222, 2222 + workers)]
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": hosts}}))
    assert distribution.bfloat16_helps() is helps


def test_a_tf_config_without_a_cluster_is_shown_with_an_example(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match=r"TF_CONFIG is '\{\}', which has no valid cluster .* use the form"):
        distribution.workers()


@pytest.mark.parametrize("address", ["10.0.0.2", "10.0.0.2:port", "10.0.0.2:70000"])
def test_an_address_without_a_port_is_named(monkeypatch, address):
    config = {"cluster": {"worker": [address, "127.0.0.1:2222"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match=rf"TF_CONFIG: '{address}' is no address of a worker; use the form host:port"):
        distribution.meet()


@pytest.mark.parametrize(
    "task", [{}, {"task": {"type": "worker", "index": 7}}, {"task": {"type": "judge", "index": 0}}]
)
def test_a_task_that_is_not_in_the_cluster_is_named(monkeypatch, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, **task}))
    with pytest.raises(ValueError, match=r"TF_CONFIG has no task that is in its cluster \(No "):
        distribution.meet()


def test_a_taken_port_of_a_worker_is_named(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", cluster()[0])
    address = distribution._own_and_peers()[0]
    taken, message = socket.create_server(("", int(address.rpartition(":")[2]))), f"cannot listen at {address} .*; end"
    with taken, pytest.raises(OSError, match=message):
        distribution.meet()


@pytest.mark.parametrize("limit", ["0", "soon", "-5"])
def test_a_limit_that_is_no_time_is_named(monkeypatch, limit):
    monkeypatch.setenv(distribution.LIMIT, limit)
    with pytest.raises(ValueError, match=f"MOBILENET_PIPELINE_PEER_SECONDS is '{limit}'; give a number of seconds"):
        distribution.meet()


def test_without_a_gpu_the_strategy_is_the_default_one():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU: MirroredStrategy is chosen")
    assert distribution.choose() is tf.distribute.get_strategy()
