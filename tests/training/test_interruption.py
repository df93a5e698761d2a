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
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the digits in it, and a recipe of three epochs."""
    folder = tmp_path_factory.mktemp("killed")
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(re.sub(r"epochs: \d+", "epochs: 3", params), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    start(folder, "ingest", "digits").wait(200)
    return folder


def start(folder: Path, stage: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mobilenet_pipeline.stages", stage, *arguments]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with (folder / "log").open("wb") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=variables)


def trained(folder: Path) -> list[np.ndarray]:
    process = start(folder, "train", "digits", "scratch")
    process.wait(300)
    assert process.returncode == 0, (folder / "log").read_text()[-3000:]
    return keras.models.load_model(folder / "models/digits/scratch/model.keras").get_weights()


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[np.ndarray]:
    """The weights of a training without an interruption."""
    return trained(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_training_ends_with_the_same_weights(
    number: signal.Signals, folder: Path, whole: list[np.ndarray]
):
    process, deadline = start(folder, "train", "digits", "scratch"), time.monotonic() + 200
    while "epoch 1/3" not in (folder / "log").read_text():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    said = "stop requested: the next run continues from models/digits/scratch/checkpoint.npz"
    assert (said in (folder / "log").read_text()) == (number == signal.SIGTERM)
    resumed = trained(folder)
    assert "continuing after step" in (folder / "log").read_text()
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(resumed, whole, strict=True))
