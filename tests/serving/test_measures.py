"""What `/metrics` counts."""

from collections.abc import Callable

from bento_fixtures import Service

Encode = Callable[..., bytes]


def predict(service: Service, image: bytes) -> str:
    return str(service.ask("POST", "/predict", files={"image": image}).json()["class"])


def test_requests_are_counted_by_model_version(service: Service, encode: Encode) -> None:
    labels = {"endpoint": "/predict", "code": "200", "model_version": "2"}
    before = service.counted("mobilenet_requests_total", **labels)
    predict(service, encode())
    assert service.counted("mobilenet_requests_total", **labels) == before + 1


def test_answers_are_counted_by_class(service: Service, encode: Encode) -> None:
    labels = {"predicted_class": predict(service, encode()), "model_version": "2"}
    before = service.counted("mobilenet_answers_total", **labels)
    predict(service, encode())
    assert service.counted("mobilenet_answers_total", **labels) == before + 1


def test_latency_and_batch_size_are_counted(service: Service, encode: Encode) -> None:
    batch, labels = "mobilenet_images_per_request", {"endpoint": "/predict_batch", "model_version": "2"}
    before = service.counted(f"{batch}_count", **labels), service.counted(f"{batch}_sum", **labels)
    service.ask("POST", "/predict_batch", files=[("images", encode())] * 3)
    assert service.counted(f"{batch}_count", **labels) == before[0] + 1
    assert service.counted(f"{batch}_sum", **labels) == before[1] + 3
    assert service.counted("mobilenet_request_seconds_bucket", **labels, le="2.5") >= 1


def test_refused_requests_are_counted_too(service: Service) -> None:
    labels = {"endpoint": "/predict", "code": "400", "model_version": ""}
    before = service.counted("mobilenet_requests_total", **labels)
    service.ask("POST", "/predict", files={"image": b"no image"})
    assert service.counted("mobilenet_requests_total", **labels) == before + 1
