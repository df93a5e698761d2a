"""The OpenAPI document, held against the running service and its models."""

import json
import re
from typing import Any

import pytest
from bento_fixtures import CLASSES, Service

UPLOAD_PATHS = ["/predict", "/compare", "/predict_batch", "/input"]
RAW, TEXT = ({"Content-Type": kind} for kind in ("application/octet-stream", "text/plain"))


GZIP = {"Content-Type": "image/png", "Content-Encoding": "gzip"}


def document(service: Service) -> dict[str, Any]:
    return dict(service.ask("GET", "/docs.json").json())


def paths(service: Service) -> dict[str, Any]:
    return dict(document(service)["paths"])


def test_the_document_is_valid_openapi_3_1(service: Service) -> None:
    openapi_spec_validator = pytest.importorskip("openapi_spec_validator", reason="it is not installed")
    assert document(service)["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document(service))


def test_every_schema_is_used(service: Service) -> None:
    served = document(service)
    text = json.dumps(served)
    assert served["components"]["schemas"]
    assert all(f'"#/components/schemas/{name}"' in text for name in served["components"]["schemas"])


@pytest.mark.parametrize("path", UPLOAD_PATHS)
def test_the_page_asks_for_an_image_file(service: Service, path: str) -> None:
    assert "multipart/form-data" in paths(service)[path]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("path", UPLOAD_PATHS)
def test_every_status_of_an_address_is_documented(service: Service, path: str) -> None:
    responses = paths(service)[path]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "408", "413", "415", "500", "503", "504"}


@pytest.mark.parametrize(
    ("path", "code", "request_"),
    [
        ("/predict", "missing_image", {}),
        ("/predict", "malformed_form", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
        ("/predict", "empty", {"files": {"image": ("photo.png", b"")}}),
        ("/predict", "not_an_image", {"files": {"image": b"no image"}}),
        ("/predict", "too_many_bytes", {"content": bytes(11 * 2**20), "headers": RAW}),
        ("/predict", "unsupported_media_type", {"content": b"x", "headers": TEXT}),
        ("/predict", "unsupported_encoding", {"content": b"x", "headers": GZIP}),
        ("/predict_batch", "missing_image", {}),
        ("/predict_batch", "wrong_length", {"content": bytes(3073), "headers": RAW}),
        ("/predict_batch", "too_many_images", {"content": bytes(257 * 3072), "headers": RAW}),
    ],
)
def test_a_refusal_is_the_documented_example(service: Service, path: str, code: str, request_: dict[str, Any]) -> None:
    answer = service.ask("POST", path, **request_)
    responses = paths(service)[path]["post"]["responses"]
    examples = responses[str(answer.status_code)]["content"]["application/json"]["examples"]
    assert answer.json() == examples[code]["value"]


def test_the_example_of_model_is_its_answer(service: Service) -> None:
    response = paths(service)["/model"]["get"]["responses"]["200"]
    assert response["content"]["application/json"]["example"] == service.ask("GET", "/model").json()


def test_the_example_of_predict_has_the_model_s_classes(service: Service) -> None:
    example = paths(service)["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert list(example["probabilities"]) == CLASSES
    assert sum(example["probabilities"].values()) == pytest.approx(1, abs=0.01)
    assert (example["model_name"], example["model_version"]) == ("cifar10-mobilenet", "2")


def test_the_image_size_is_the_model_s(service: Service) -> None:
    documented = paths(service)
    assert "3,072 bytes an image (32 rows of 32 RGB pixels)" in documented["/predict_batch"]["post"]["description"]
    assert documented["/input"]["post"]["responses"]["200"]["description"] == "32 by 32 pixels."


def test_the_page_finds_its_scripts_and_styles(service: Service) -> None:
    page = service.ask("GET", "/docs").text
    parts = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page)
    assert parts
    assert all(service.ask("GET", f"/{part}").status_code == 200 for part in parts)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_names_no_other_host(service: Service, path: str) -> None:
    answer = service.ask("GET", path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/)[a-z]+\.[a-z]", policy + answer.text)
