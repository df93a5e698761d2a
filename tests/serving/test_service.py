"""What the running service answers to a good request."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from running_service import CLASSES, VERDICT, Service

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import Artefact
from serving import openapi

Encode = Callable[..., bytes]


def post(service: Service, data: bytes, path: str = "/predict") -> dict[str, Any]:
    answer = service.ask("POST", path, files={"image": ("photo", data)})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def in_process(folder: Path, data: bytes) -> np.ndarray:
    return Artefact(folder / "model.tflite").predict(preprocess.decode(data)[None])[0]


@pytest.mark.parametrize(("kind", "size"), [("PNG", (32, 32)), ("JPEG", (640, 480)), ("WEBP", (3000, 2000))])
def test_the_answer_is_that_of_the_artefact(
    service: Service, versions: list[Path], encode: Encode, kind: str, size: tuple[int, int]
) -> None:
    data = encode(kind, size)
    found, expected = post(service, data), in_process(versions[1], data)
    assert np.allclose(list(found["probabilities"].values()), expected, atol=1e-6)
    assert found["class"] == CLASSES[int(expected.argmax())]


def test_a_prediction_has_all_ten_classes_and_the_version(service: Service, encode: Encode) -> None:
    found = post(service, encode())
    assert list(found["probabilities"]) == CLASSES
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["confidence"] == max(found["probabilities"].values()) == found["probabilities"][found["class"]]
    assert (found["model_name"], found["model_version"]) == ("cifar10-mobilenet", "2")


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; name=x"])
def test_an_image_may_be_the_body_itself(service: Service, encode: Encode, kind: str) -> None:
    answer = service.ask("POST", "/predict", content=encode(), headers={"Content-Type": kind})
    assert answer.json() == post(service, encode())


def test_both_models_answer_side_by_side(service: Service, versions: list[Path], encode: Encode) -> None:
    found = post(service, encode(), "/compare")
    for role, folder in (("champion", versions[1]), ("challenger", versions[0])):
        assert np.allclose(list(found[role]["probabilities"].values()), in_process(folder, encode()), atol=1e-6)
    assert [found[role]["model_version"] for role in ("champion", "challenger")] == ["2", "1"]


def test_the_models_are_described(service: Service, recipe: Any) -> None:
    found = service.ask("GET", "/model").json()
    champion = found["champion"]
    assert (champion["version"], champion["run_id"], champion["accuracy"]) == ("2", "2" * 32, 0.9)
    assert (champion["data_digest"], champion["verdict"]) == (recipe.data.digest, VERDICT)
    assert found["challenger"]["version"] == "1"


def test_many_at_once_get_their_own_answers(service: Service, encode: Encode) -> None:
    colours = [np.full((32, 32, 3), (7 * n, 255 - 7 * n, 128), np.uint8) for n in range(32)]
    alone = [post(service, encode(pixels=colour)) for colour in colours]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda colour: post(service, encode(pixels=colour)), colours * 4))
    assert together == alone * 4


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_answered(service: Service, path: str) -> None:
    assert service.ask("GET", path).status_code == 200


def test_requests_are_counted_with_the_version_that_answered(service: Service, encode: Encode) -> None:
    post(service, encode())
    assert service.counted("mobilenet_requests_total", endpoint="/predict", code="200", model_version="2") >= 1


def test_answers_are_counted_by_class(service: Service, encode: Encode) -> None:
    name = post(service, encode())["class"]
    before = service.counted("mobilenet_answers_total", predicted_class=name, model_version="2")
    post(service, encode())
    assert service.counted("mobilenet_answers_total", predicted_class=name, model_version="2") == before + 1


def test_how_long_answers_take_and_how_many_images_requests_have_is_counted(service: Service, encode: Encode) -> None:
    batch, labels = "mobilenet_images_per_request", {"endpoint": "/predict_batch", "model_version": "2"}
    before = service.counted(f"{batch}_count", **labels), service.counted(f"{batch}_sum", **labels)
    service.ask("POST", "/predict_batch", files=[("images", encode())] * 3)
    assert service.counted(f"{batch}_count", **labels) == before[0] + 1
    assert service.counted(f"{batch}_sum", **labels) == before[1] + 3
    assert service.counted("mobilenet_request_seconds_bucket", **labels, le="2.5") >= 1


def test_the_model_is_described_as_the_openapi_document_says(service: Service) -> None:
    found, example = service.ask("GET", "/model").json(), openapi.MODEL
    assert found.keys() == example.keys()
    assert found["champion"].keys() == example["champion"].keys()


def test_refusals_are_counted_too(service: Service) -> None:
    service.ask("POST", "/predict", files={"image": b"no image"})
    assert service.counted("mobilenet_requests_total", endpoint="/predict", code="400", model_version="") >= 1


def test_every_answer_names_its_version_in_a_header(service: Service, encode: Encode) -> None:
    for path, field in (("/predict", "image"), ("/compare", "image"), ("/predict_batch", "images")):
        assert service.ask("POST", path, files={field: encode()}).headers["x-model-version"] == "2"


def test_the_input_of_the_network_is_shown_as_a_png(service: Service, encode: Encode) -> None:
    data = encode("JPEG", (300, 200))
    answer = service.ask("POST", "/input", files={"image": data})
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(preprocess.decode(answer.content), preprocess.decode(data))


def test_the_page_may_ask_no_other_host(service: Service) -> None:
    answer = service.ask("GET", "/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_openapi_page_asks_for_an_image_file(service: Service) -> None:
    paths = service.ask("GET", "/docs.json").json()["paths"]
    for path in ("/predict", "/compare", "/predict_batch", "/input"):
        assert "multipart/form-data" in paths[path]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("path", ["/predict", "/compare", "/predict_batch", "/input"])
def test_the_openapi_document_says_every_error_with_an_example(service: Service, path: str) -> None:
    responses = service.ask("GET", "/docs.json").json()["paths"][path]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "408", "413", "415", "500", "503", "504"}


RAW, TEXT = ({"Content-Type": kind} for kind in ("application/octet-stream", "text/plain"))


@pytest.mark.parametrize(
    ("path", "code", "request_"),
    [
        ("/predict", "missing_image", {}),
        ("/predict", "malformed_form", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
        ("/predict", "empty", {"files": {"image": ("photo.png", b"")}}),
        ("/predict", "not_an_image", {"files": {"image": b"no image"}}),
        ("/predict", "too_many_bytes", {"content": bytes(11 * 2**20), "headers": RAW}),
        ("/predict", "unsupported_media_type", {"content": b"x", "headers": TEXT}),
        ("/predict_batch", "missing_image", {}),
        ("/predict_batch", "wrong_length", {"content": bytes(3073), "headers": RAW}),
        ("/predict_batch", "too_many_images", {"content": bytes(257 * 3072), "headers": RAW}),
    ],
)
def test_an_error_is_what_the_openapi_document_says(
    service: Service, path: str, code: str, request_: dict[str, Any]
) -> None:
    answer = service.ask("POST", path, **request_)
    responses = service.ask("GET", "/docs.json").json()["paths"][path]["post"]["responses"]
    examples = responses[str(answer.status_code)]["content"]["application/json"]["examples"]
    assert answer.json() == examples[code]["value"]


def test_the_openapi_page_finds_its_parts(service: Service) -> None:
    page = service.ask("GET", "/docs").text
    found = re.findall(r'(?:src|href)="\.?/?(static_content/[^"]+)"', page)
    assert found
    assert all(service.ask("GET", f"/{part}").status_code == 200 for part in found)


def test_no_training_code_is_in_the_serving_processes(service: Service) -> None:
    libraries = {region.path for process in service.processes() for region in process.memory_maps()}
    assert any("ai_edge_litert" in path for path in libraries)
    assert not [path for path in libraries if "tensorflow/" in path or "keras" in path or "mlflow" in path]


def test_only_this_machine_can_reach_it(service: Service) -> None:
    port = int(service.address.rpartition(":")[2])
    listening = [
        entry.laddr.ip
        for process in service.processes()
        for entry in process.net_connections("inet")
        if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port
    ]
    assert set(listening) == {"127.0.0.1"}
