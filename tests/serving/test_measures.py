"""What `/metrics` counts."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bento_fixtures import Service

Encode = Callable[..., bytes]
ROOT = Path(__file__).resolve().parents[2]


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
    assert service.counted("mobilenet_request_seconds_bucket", **labels, code="200", le="2.5") >= 1


def test_refused_requests_are_counted_too(service: Service) -> None:
    labels = {"endpoint": "/predict", "code": "400", "model_version": ""}
    before = service.counted("mobilenet_requests_total", **labels)
    service.ask("POST", "/predict", files={"image": b"no image"})
    assert service.counted("mobilenet_requests_total", **labels) == before + 1


def bentoml_labels(service: Service, **labels: str) -> dict[str, str]:
    name, _, version = service.tag.partition(":")
    return {"service_name": name, "service_version": version, "runner_name": "Classifier", **labels}


def test_bentoml_s_names_count_the_same_requests(service: Service, encode: Encode) -> None:
    labels = bentoml_labels(service, endpoint="/predict", http_response_code="200")
    seconds = "bentoml_service_request_duration_seconds"
    before = service.counted("bentoml_service_request_total", **labels), service.counted(f"{seconds}_count", **labels)
    predict(service, encode())
    assert service.counted("bentoml_service_request_total", **labels) == before[0] + 1
    assert service.counted(f"{seconds}_count", **labels) == before[1] + 1
    assert service.counted(f"{seconds}_bucket", **labels, le="+Inf") == before[1] + 1


def test_a_request_is_in_progress_until_its_answer(service: Service, encode: Encode) -> None:
    predict(service, encode())
    progress = "bentoml_service_request_in_progress"
    assert service.counted(progress, **bentoml_labels(service, endpoint="/predict")) == 0
    assert service.counted(progress, **bentoml_labels(service, endpoint="/metrics")) == 1


def test_a_killed_worker_has_no_request_in_progress(tmp_path: Path) -> None:
    code = "from serving import measures; measures.begin_request('/predict'); print(measures.page().decode())"
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "BENTOML_HOME": str(tmp_path / "store")}
    first, second = (
        subprocess.check_output([sys.executable, "-c", code], env=env, text=True, cwd=ROOT) for _ in range(2)
    )
    (count,) = [line for line in second.splitlines() if line.startswith("bentoml_service_request_in_progress{")]
    assert count in first
    assert count.endswith(" 1.0")
