"""Two tiny real models, a Bento of both, and the real service in processes of its own."""

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from running_service import CLASSES, VERDICT, Service

from mobilenet_pipeline import packaging
from mobilenet_pipeline.config import Recipe, load_recipe

# TensorFlow stays out of this process, where it would take ten seconds of every other test.
EXPORT = """
import sys
from mobilenet_pipeline import environment
environment.prepare()
import keras
keras.utils.set_random_seed(0)
inputs = keras.Input((32, 32, 3), dtype="uint8")
means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
dense = keras.layers.Dense(10, activation="softmax", kernel_initializer="normal")
model = keras.Model(inputs, dense(means))
model.export(sys.argv[1], format="litert", verbose=False)
# Another export takes as long again; the same model with its weights turned round is another model as well.
kernel = dense.kernel.numpy().T
data = open(sys.argv[1], "rb").read()
assert data.count(kernel.tobytes()) == 1
open(sys.argv[2], "wb").write(data.replace(kernel.tobytes(), (-kernel).tobytes()))
"""


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two exported models that answer differently, by the colour of the image."""
    pytest.importorskip("keras", reason="the models are made with Keras")
    folder = tmp_path_factory.mktemp("artefacts")
    paths = [folder / "first.tflite", folder / "second.tflite"]
    subprocess.run([sys.executable, "-c", EXPORT, *map(str, paths)], check=True, timeout=120, capture_output=True)
    return paths


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("cifar10", Path(__file__).resolve().parents[2] / "params.yaml")


@pytest.fixture(scope="session")
def versions(artefacts: list[Path], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Versions 1 and 2 of the registered model, as the registry hands them out."""
    folders = []
    for number, artefact in enumerate(artefacts, 1):
        folder = tmp_path_factory.mktemp(f"version{number}")
        shutil.copyfile(artefact, folder / "model.tflite")
        document = {
            "registered_model": recipe.registered_model,
            "version": str(number),
            "run_id": str(number) * 32,
            "recipe": recipe.name,
            "candidate": "scratch",
            "class_names": CLASSES,
            "data_digest": recipe.data.digest,
            "sha256": hashlib.sha256(artefact.read_bytes()).hexdigest(),
            "git_commit": "c" * 40,
            "test": {"accuracy": 0.9, "loss": 0.3, "top3_accuracy": 0.99, "rows": 10_000},
            "verdict": VERDICT,
        }
        (folder / "metadata.json").write_text(json.dumps(document))
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def filled_store(versions: list[Path], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML store with a Bento of version 2 as champion and version 1 as challenger, live."""
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(store))
        packaging.put_live(packaging.package(recipe, versions[1], versions[0]))
    return store


@pytest.fixture
def store(filled_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The filled store, as the one that packaging works on. To be left as it is."""
    monkeypatch.setenv("BENTOML_HOME", str(filled_store))
    return filled_store


@pytest.fixture
def own_store(filled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the filled store."""
    copy = tmp_path / "store"
    shutil.copytree(filled_store, copy, ignore=shutil.ignore_patterns("metrics"))
    monkeypatch.setenv("BENTOML_HOME", str(copy))
    return copy


@pytest.fixture(scope="session")
def service(filled_store: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of a Bento, which is all it serves."""
    with started(filled_store, recipe, tmp_path_factory.mktemp("log")) as running:
        yield running


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """An image file of random pixels, or of the given ones."""

    def write(kind: str = "PNG", size: tuple[int, int] = (32, 32), pixels: np.ndarray | None = None) -> bytes:
        if pixels is None:
            pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    return write


@contextmanager
def started(
    store: Path, recipe: Recipe, folder: Path, follow: bool = False, host: str = "127.0.0.1", **variables: str
) -> Iterator[Service]:
    """The store's live Bento, served on a free port, with these variables in its environment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(store))
        bento = packaging.live(recipe)
        assert bento is not None
        command = packaging.serve_command(bento.tag, host, port, record=folder / "answers" if follow else None)
    log = folder / "service.log"
    with log.open("wb") as file:
        process = psutil.Popen(command, stdout=file, stderr=file, env={**os.environ, **variables})
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    client = httpx.Client(base_url=address, trust_env=False, timeout=30)
    running = Service(address, client, process, bento.tag)
    try:
        _wait(running, log)
        yield running
    finally:
        client.close()
        everything = running.processes()
        if everything:
            process.terminate()
        for left in psutil.wait_procs(everything, timeout=15)[1]:
            left.kill()


@pytest.fixture
def start(recipe: Recipe, tmp_path: Path) -> Callable[..., AbstractContextManager[Service]]:
    """`started`, with a folder for the log."""
    return partial(started, recipe=recipe, folder=tmp_path)


def _wait(service: Service, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            if service.ask("GET", "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"the service did not start:\n{log.read_text()[-3000:]}")
