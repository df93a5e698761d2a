"""Many images in one request: their order, their errors and their limits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bento_fixtures import CLASSES, Service

from mobilenet_pipeline.inference.artefact import Artefact

Encode = Callable[..., bytes]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def post_raw(service: Service, body: bytes) -> tuple[int, dict]:
    headers = {"Content-Type": "application/octet-stream"}
    answer = service.ask("POST", "/predict_batch", content=body, headers=headers)
    return answer.status_code, answer.json()


def test_raw_pixels_are_answered_in_their_order(service: Service, served_versions: list[Path]) -> None:
    images = pixels(64)
    status, answer = post_raw(service, images.tobytes())
    expected = Artefact(served_versions[1] / "model.tflite").predict(images)
    assert status == 200
    assert (answer["model_name"], answer["model_version"]) == ("cifar10-mobilenet", "2")
    assert [one["class"] for one in answer["predictions"]] == [CLASSES[index] for index in expected.argmax(axis=1)]


def test_files_are_answered_as_if_each_was_alone(service: Service, encode: Encode) -> None:
    files = [encode(pixels=image) for image in pixels(5)]
    together = service.ask("POST", "/predict_batch", files=[("images", file) for file in files]).json()["predictions"]
    alone = [service.ask("POST", "/predict", files={"image": file}).json() for file in files]
    assert [one["class"] for one in together] == [one["class"] for one in alone]
    assert np.allclose([one["confidence"] for one in together], [one["confidence"] for one in alone], atol=1e-6)


def test_an_unreadable_image_has_its_error_at_its_place(service: Service, encode: Encode) -> None:
    files = [("images", encode()), ("images", b"no image"), ("images", encode())]
    first, bad, last = service.ask("POST", "/predict_batch", files=files).json()["predictions"]
    assert first["probabilities"] == last["probabilities"]
    assert (bad["error"]["code"], bad["error"]["field"]) == ("not_an_image", "images[1]")


def test_a_batch_of_unreadable_images_is_answered(service: Service) -> None:
    answer = service.ask("POST", "/predict_batch", files=[("images", b"x"), ("images", b"y")])
    assert [one["error"]["field"] for one in answer.json()["predictions"]] == ["images[0]", "images[1]"]


@pytest.mark.parametrize(
    ("size", "status", "code"),
    [(0, 400, "missing_image"), (3071, 400, "wrong_length"), (257 * 3072, 413, "too_many_images")],
)
def test_raw_pixels_of_a_wrong_length_are_refused(service: Service, size: int, status: int, code: str) -> None:
    answered, document = post_raw(service, bytes(size))
    assert (answered, document["error"]["code"], document["error"]["field"]) == (status, code, "images")


def test_too_many_files_are_refused(service: Service) -> None:
    answer = service.ask("POST", "/predict_batch", files=[("images", b"x")] * 257)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")


def test_a_text_among_the_files_is_refused(service: Service, encode: Encode) -> None:
    form = {"data": {"images": "photo.png"}, "files": [("images", encode()), ("images", encode())]}
    answer = service.ask("POST", "/predict_batch", **form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_image")


def test_files_beyond_the_pixel_limit_are_refused(service: Service, encode: Encode) -> None:
    large = encode("PNG", (4900, 4900), np.zeros((4900, 4900, 3), np.uint8))
    answer = service.ask("POST", "/predict_batch", files=[("images", large)] * 5)
    codes = [one.get("error", {}).get("code") for one in answer.json()["predictions"]]
    assert codes == [None, None, None, None, "too_many_pixels"]


def test_a_batch_is_not_an_image_as_the_whole_body(service: Service, encode: Encode) -> None:
    answer = service.ask("POST", "/predict_batch", content=encode(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
