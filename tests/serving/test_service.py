"""What the running service answers to a good request."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import colour_profiles
import numpy as np
import psutil
import pytest
from bento_fixtures import CLASSES, VERDICT, Service, without_id

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import Artefact

Encode = Callable[..., bytes]


def post(service: Service, data: bytes, path: str = "/predict") -> dict[str, Any]:
    answer = service.ask("POST", path, files={"image": ("photo", data)})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def in_process(folder: Path, data: bytes) -> np.ndarray:
    return Artefact(folder / "model.tflite").predict(preprocess.decode(data, 32)[None])[0]


@pytest.mark.parametrize(("kind", "size"), [("PNG", (32, 32)), ("JPEG", (640, 480)), ("WEBP", (3000, 2000))])
def test_an_answer_is_that_of_the_artefact(
    service: Service, served_versions: list[Path], encode: Encode, kind: str, size: tuple[int, int]
) -> None:
    data = encode(kind, size)
    answer, expected = post(service, data), in_process(served_versions[1], data)
    assert np.allclose(list(answer["probabilities"].values()), expected, atol=1e-6)
    assert answer["class"] == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "MPO", "P3"])
def test_a_photograph_gets_the_answer_of_its_png(service: Service, encode: Encode, kind: str) -> None:
    pixels = colour_profiles.photo(64)
    photo = colour_profiles.display_p3_jpeg(pixels) if kind == "P3" else encode(kind, pixels=pixels)
    answers = [post(service, file)["probabilities"] for file in (photo, encode("PNG", pixels=pixels))]
    assert answers[0] == pytest.approx(answers[1], abs=0.02)


def test_a_prediction_has_every_class_and_the_version(service: Service, encode: Encode) -> None:
    answer = post(service, encode())
    assert list(answer["probabilities"]) == CLASSES
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["confidence"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["class"]]
    assert (answer["model_name"], answer["model_version"]) == ("cifar10-mobilenet", "2")


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; name=x"])
def test_an_image_may_be_the_whole_body(service: Service, encode: Encode, kind: str) -> None:
    answer = service.ask("POST", "/predict", content=encode(), headers={"Content-Type": kind})
    assert without_id(answer.json()) == without_id(post(service, encode()))


def test_compare_answers_with_both_models(service: Service, served_versions: list[Path], encode: Encode) -> None:
    comparison = post(service, encode(), "/compare")
    for role, folder in (("champion", served_versions[1]), ("challenger", served_versions[0])):
        expected = in_process(folder, encode())
        assert np.allclose(list(comparison[role]["probabilities"].values()), expected, atol=1e-6)
    assert [comparison[role]["model_version"] for role in ("champion", "challenger")] == ["2", "1"]


def test_the_models_are_described(service: Service, served_recipe: Recipe) -> None:
    models = service.ask("GET", "/model").json()
    champion = models["champion"]
    assert (champion["version"], champion["run_id"], champion["accuracy"]) == ("2", "2" * 32, 0.9)
    assert (champion["data_digest"], champion["verdict"]) == (served_recipe.data.digest, VERDICT)
    assert champion["image_shape"] == [32, 32, 3]
    assert models["challenger"]["version"] == "1"


def test_concurrent_requests_get_their_own_answers(service: Service, encode: Encode) -> None:
    colours = [np.full((32, 32, 3), (7 * n, 255 - 7 * n, 128), np.uint8) for n in range(32)]
    alone = [post(service, encode(pixels=colour)) for colour in colours]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda colour: post(service, encode(pixels=colour)), colours * 4))
    assert [without_id(answer) for answer in together] == [without_id(answer) for answer in alone * 4]
    assert len({answer["answer_id"] for answer in [*alone, *together]}) == 5 * len(colours)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_answered(service: Service, path: str) -> None:
    assert service.ask("GET", path).status_code == 200


def test_every_answer_has_its_version_in_a_header(service: Service, encode: Encode) -> None:
    for path, field in (("/predict", "image"), ("/compare", "image"), ("/predict_batch", "images")):
        assert service.ask("POST", path, files={field: encode()}).headers["x-model-version"] == "2"


def test_the_network_s_input_is_shown_as_a_png(service: Service, encode: Encode) -> None:
    data = encode("JPEG", (300, 200))
    answer = service.ask("POST", "/input", files={"image": data})
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(preprocess.decode(answer.content, 32), preprocess.decode(data, 32))


def test_serving_processes_load_no_training_code(service: Service) -> None:
    libraries = {region.path for process in service.processes() for region in process.memory_maps()}
    assert any("ai_edge_litert" in path for path in libraries)
    assert not [path for path in libraries if "tensorflow/" in path or "keras" in path or "mlflow" in path]


def test_the_service_listens_on_loopback_only(service: Service) -> None:
    port = int(service.address.rpartition(":")[2])
    listening = [
        entry.laddr.ip
        for process in service.processes()
        for entry in process.net_connections("inet")
        if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port
    ]
    assert set(listening) == {"127.0.0.1"}
