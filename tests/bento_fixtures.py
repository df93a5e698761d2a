"""Fixtures: tiny real models, a Bento of two of them, and the real service in processes of its own.

A plugin that tests/conftest.py registers, so that tests of `serving` and of `release` share one Bento.
"""

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pillow_heif
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from waiting import LIMIT

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.release import bento

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SMALL, SMALL_CLASSES = 20, ["rock", "paper", "scissors"]
VERDICT = {"promoted": True, "reason": "It beats the champion."}
THRESHOLDS = {"coverage": 0.95, "probability": 0.1, "energy": 2.3}
"""Of versions 1 and 2. All their probabilities are near 0.1: sets have several classes."""
# TensorFlow is not imported in this process: it would slow down every other test by ten seconds.
EXPORT = f"""
import sys
from mobilenet_pipeline.system import environment
environment.prepare()
import keras
from mobilenet_pipeline.evaluation.export import with_energy
keras.utils.set_random_seed(0)

def export(path, size, classes, complete):
    inputs = keras.Input((size, size, 3), dtype="uint8")
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    dense = keras.layers.Dense(classes, kernel_initializer="normal")
    model = keras.Model(inputs, keras.layers.Softmax()(dense(means)))
    complete(model).export(path, format="litert", verbose=False)
    return dense.kernel.numpy().T

kernel = export(sys.argv[1], 32, {len(CLASSES)}, with_energy)
# Negated weights make another model without the seconds of another export.
data = open(sys.argv[1], "rb").read()
assert data.count(kernel.tobytes()) == 1
open(sys.argv[2], "wb").write(data.replace(kernel.tobytes(), (-kernel).tobytes()))
export(sys.argv[3], {SMALL}, {len(SMALL_CLASSES)}, lambda model: model)
"""


def without_id(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction without its id, which no other answer has."""
    return {key: value for key, value in answer.items() if key != "answer_id"}


@dataclass(frozen=True)
class Service:
    """A running service: its address, a client of it, its first process, and its Bento's tag."""

    address: str
    client: httpx.Client
    process: psutil.Popen
    tag: str

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options)

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a series at /metrics; 0 if it has none."""
        for family in text_string_to_metric_families(self.ask("GET", "/metrics").text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def processes(self) -> list[psutil.Process]:
        """Return the running processes of the service."""
        return [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that answer differently, by the colour of the image, and a third for smaller images.

    The third is like those of earlier releases, without energies.
    """
    pytest.importorskip("keras", reason="the models are made with Keras")
    folder = tmp_path_factory.mktemp("artefacts")
    paths = [folder / "first.tflite", folder / "second.tflite", folder / "small.tflite"]
    subprocess.run([sys.executable, "-c", EXPORT, *map(str, paths)], check=True, capture_output=True)
    return paths


@pytest.fixture(scope="session")
def artefacts(exported: list[Path]) -> list[Path]:
    """Two models of images (32, 32, 3) that answer differently, by the colour of the image."""
    return exported[:2]


@pytest.fixture(scope="session")
def served_recipe() -> Recipe:
    """The recipe of the served models."""
    return load_recipe("cifar10", Path(__file__).resolve().parents[1] / "params.yaml")


@pytest.fixture(scope="session")
def all_versions(exported: list[Path], served_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for number, artefact in enumerate(exported, 1):
        folder = tmp_path_factory.mktemp(f"version{number}")
        shutil.copyfile(artefact, folder / "model.tflite")
        document = {
            "registered_model": served_recipe.registered_model,
            "version": str(number),
            "run_id": str(number) * 32,
            "recipe": served_recipe.name,
            "candidate": "scratch",
            "class_names": CLASSES if number < 3 else SMALL_CLASSES,
            "data_digest": served_recipe.data.digest,
            "sha256": hashlib.sha256(artefact.read_bytes()).hexdigest(),
            "git_commit": "c" * 40,
            "test": {"accuracy": 0.9, "loss": 0.3, "top3_accuracy": 0.99, "rows": 10_000},
            "verdict": VERDICT,
            **({"thresholds": THRESHOLDS} if number < 3 else {}),
        }
        (folder / "metadata.json").write_text(json.dumps(document))
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def served_versions(all_versions: list[Path]) -> list[Path]:
    """Versions 1 and 2 of the registered model, as the registry hands them out."""
    return all_versions[:2]


@pytest.fixture(scope="session")
def small_version(all_versions: list[Path]) -> Path:
    """Version 3, of SMALL_CLASSES and smaller images, as an earlier release registered it: without thresholds."""
    return all_versions[2]


@pytest.fixture(scope="session")
def filled_bento_store(
    served_versions: list[Path], served_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A BentoML store with a live Bento of version 2 as champion and version 1 as challenger."""
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(store))
        bento.put_live(bento.package(served_recipe, served_versions[1], served_versions[0]))
    return store


@pytest.fixture
def bento_store(filled_bento_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The filled store as BENTOML_HOME. A test must not change it."""
    monkeypatch.setenv("BENTOML_HOME", str(filled_bento_store))
    return filled_bento_store


@pytest.fixture
def own_bento_store(filled_bento_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the filled store as BENTOML_HOME."""
    copy = tmp_path / "store"
    shutil.copytree(filled_bento_store, copy, ignore=shutil.ignore_patterns("metrics"))
    monkeypatch.setenv("BENTOML_HOME", str(copy))
    return copy


@pytest.fixture(scope="session")
def service(
    filled_bento_store: Path, served_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service of the filled store's Bento, without the pointer to later ones."""
    with started(filled_bento_store, served_recipe, tmp_path_factory.mktemp("log")) as running:
        yield running


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A function that returns an image file of random pixels, or of the given ones."""
    pillow_heif.register_heif_opener()

    def write(kind: str = "PNG", size: tuple[int, int] = (32, 32), pixels: np.ndarray | None = None) -> bytes:
        if pixels is None:
            pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    return write


@contextmanager
def started(
    store: Path, served_recipe: Recipe, folder: Path, follow: bool = False, host: str = "127.0.0.1", **variables: str
) -> Iterator[Service]:
    """Serve the store's live Bento on a free port, with these environment variables, until the block ends."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(store))
        tag = str(bento.live(served_recipe))
        command = bento.serve_command(tag, host, port, record=folder / "answers" if follow else None)
    log = folder / "service.log"
    with log.open("wb") as file:
        process = psutil.Popen(command, stdout=file, stderr=file, env={**os.environ, **variables})
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    client = httpx.Client(base_url=address, trust_env=False, timeout=LIMIT)
    running = Service(address, client, process, tag)
    try:
        _wait(running, log)
        yield running
    finally:
        client.close()
        everything = running.processes()
        if everything:
            process.terminate()
        for left in psutil.wait_procs(everything, timeout=LIMIT)[1]:
            left.kill()


@pytest.fixture
def start(served_recipe: Recipe, tmp_path: Path) -> Callable[..., AbstractContextManager[Service]]:
    """`started`, with a folder for its log."""
    return partial(started, served_recipe=served_recipe, folder=tmp_path)


def _wait(service: Service, log: Path) -> None:
    while service.process.poll() is None:
        try:
            if service.ask("GET", "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"the service did not start:\n{log.read_text()[-3000:]}")
