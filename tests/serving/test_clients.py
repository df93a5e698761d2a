"""Clients that other tools make: BentoML's own, and one that is generated from the OpenAPI document."""

import asyncio
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
from bento_fixtures import CLASSES, Service, without_id
from bentoml.exceptions import InvalidArgument
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture
def photo(tmp_path: Path, encode: Encode) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encode())
    return path


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with bentoml.SyncHTTPClient(service.address) as running:
        yield running


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that imports a module of the generated client.

    The generator runs in an environment of its own: it would hold back packages that the pipeline needs.
    """
    generator = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "openapi-python-client@0.29.1"]
    if subprocess.run([*generator, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("openapi-python-client cannot be installed from the package index")
    folder = tmp_path_factory.mktemp("client")
    (folder / "docs.json").write_bytes(service.ask("GET", "/docs.json").content)
    command = [*generator, "generate", "--path", "docs.json"]
    options = ["--output-path", "generated_client", "--meta", "none"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it runs ruff
    subprocess.run([*command, *options], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield lambda name: importlib.import_module(f"generated_client.{name}")


def call(generated: Any, service: Service, name: str, field: str, files: Any) -> Any:
    """Call one operation of the generated client with its form."""
    body = getattr(importlib.import_module("generated_client.models"), f"Classifier{name}")(**{field: files})
    operation = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name.partition("Files")[0])
    client = generated("client").Client(base_url=service.address)
    return generated(f"api.service_ap_is.classifier{operation}").sync(client=client, body=body)


@pytest.mark.parametrize("kind", ["path", "picture"])
def test_bentoml_s_client_sends_a_path_or_a_picture(client: Any, photo: Path, kind: str) -> None:
    answer = client.predict(image=photo if kind == "path" else Image.open(photo))
    assert answer["class"] in CLASSES


def test_bentoml_s_client_compares_and_sends_batches(client: Any, photo: Path) -> None:
    assert client.compare(image=photo)["challenger"]["model_version"] == "1"
    assert len(client.predict_batch(images=[photo, Image.open(photo)])["predictions"]) == 2
    assert len(client.predict_batch(images=[photo])["predictions"]) == 1


def test_bentoml_s_asynchronous_client_gets_the_same_answer(service: Service, client: Any, photo: Path) -> None:
    async def ask() -> Any:
        async with bentoml.AsyncHTTPClient(service.address) as running:
            return await running.predict(image=photo)

    assert without_id(asyncio.run(ask())) == without_id(client.predict(image=photo))


def test_a_refusal_is_bentoml_s_invalid_argument(client: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InvalidArgument) as refusal:
        client.predict(image=tmp_path / "text.png")
    assert json.loads(str(refusal.value))["error"]["code"] == "not_an_image"


def test_a_generated_client_predicts_and_compares(service: Service, generated: Any, encode: Encode) -> None:
    def file() -> Any:
        return generated("types").File(io.BytesIO(encode()), "photo.png")

    prediction = call(generated, service, "PredictFilesUpload", "image", file())
    comparison = call(generated, service, "CompareFilesUpload", "image", file())
    batch = call(generated, service, "PredictBatchFilesUploads", "images", [file(), file()])
    assert prediction.class_ in CLASSES
    assert comparison.champion.class_ == prediction.class_
    assert [answer.class_ for answer in batch.predictions] == [prediction.class_] * 2


def test_a_generated_client_gets_a_refusal(service: Service, generated: Any) -> None:
    text = generated("types").File(io.BytesIO(b"no image"), "photo.png")
    assert call(generated, service, "PredictFilesUpload", "image", text).error.code == "not_an_image"
