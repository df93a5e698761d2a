"""A training stage that is stopped or killed; every run of it is a process, as in the pipeline."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the digits in it, and a recipe of three epochs of a small network."""
    folder = tmp_path_factory.mktemp("killed")
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    short = re.sub(r"epochs: \d+", "epochs: 3", params).replace("strides: stem-1", "strides: stock")
    (folder / "params.yaml").write_text(short, encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    start(folder, "ingest", "digits").wait()
    return folder


def start(folder: Path, stage: str, *arguments: str, **settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mobilenet_pipeline.stages", stage, *arguments]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **settings}
    with (folder / "log").open("wb") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=variables)


def trained(folder: Path, **settings: str) -> keras.Model:
    process = start(folder, "train", "digits", "scratch", **settings)
    process.wait()
    assert process.returncode == 0, (folder / "log").read_text()[-3000:]
    return keras.models.load_model(folder / "models/digits/scratch/model.keras")


@pytest.fixture(scope="module")
def whole(folder: Path) -> keras.Model:
    """A training without an interruption, by a user who uses Keras otherwise for other projects."""
    return trained(folder, KERAS_HOME=str(ROOT / "tests/hostile"), KERAS_BACKEND="jax", TF_USE_LEGACY_KERAS="1")


def test_a_training_is_the_same_whatever_keras_is_set_to(whole: keras.Model):
    assert whole.get_layer("conv1").data_format == "channels_last"
    assert {weight.dtype for weight in whole.get_weights()} == {np.dtype("float32")}


def interrupt(folder: Path, line: str, number: signal.Signals) -> int:
    """Train until the log has the line, send the signal, and return the exit code."""
    process = start(folder, "train", "digits", "scratch")
    while line not in (folder / "log").read_text():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait()


def test_a_training_that_was_killed_and_stopped_ends_with_the_same_weights(folder: Path, whole: keras.Model):
    said = "stop requested: the next run continues from models/digits/scratch/checkpoint.npz"
    assert interrupt(folder, "epoch 1/3", signal.SIGKILL) == -signal.SIGKILL
    assert said not in (folder / "log").read_text()
    assert interrupt(folder, "epoch 2/3", signal.SIGTERM) == 128 + signal.SIGTERM
    assert said in (folder / "log").read_text()
    resumed = trained(folder)
    assert "continuing after step" in (folder / "log").read_text()
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True))
