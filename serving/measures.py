"""What the service counts, for Prometheus to collect at `/metrics`."""

import os
from collections import Counter
from functools import lru_cache
from typing import Any

VERSION_HEADER = b"x-model-version"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@lru_cache
def prepare() -> dict[str, Any]:
    """Return the counters and histograms by name.

    Call it once before any thread counts, and after BentoML has configured Prometheus's client.
    """
    import prometheus_client

    return {
        "requests": prometheus_client.Counter(
            "mobilenet_requests_total", "Requests answered", ["endpoint", "code", "model_version"]
        ),
        "seconds": prometheus_client.Histogram(
            "mobilenet_request_seconds",
            "Seconds from a request's first byte to the end of its answer",
            ["endpoint", "model_version"],
            buckets=SECONDS,
        ),
        "images": prometheus_client.Histogram(
            "mobilenet_images_per_request",
            "Images in an answered request",
            ["endpoint", "model_version"],
            buckets=IMAGES,
        ),
        "classes": prometheus_client.Counter(
            "mobilenet_answers_total", "Images by predicted class", ["predicted_class", "model_version"]
        ),
        "unrecorded": prometheus_client.Counter(
            "mobilenet_unrecorded_answers_total", "Answers that could not be written to the record"
        ),
    }


@lru_cache(512)
def _series(name: str, *labels: str) -> Any:
    """Return one time series. Finding it by its labels takes longer than counting."""
    return prepare()[name].labels(*labels)


def count_request(endpoint: str, code: int, version: str, seconds: float) -> None:
    """Count one request, answered or refused; `version` is "" if no model computed it."""
    _series("requests", endpoint, str(code), version).inc()
    _series("seconds", endpoint, version).observe(seconds)


def count_answers(endpoint: str, version: str, classes: list[str]) -> None:
    """Count the predicted classes of one request."""
    _series("images", endpoint, version).observe(len(classes))
    for name, count in Counter(classes).items():
        _series("classes", name, version).inc(count)


def count_unrecorded(answers: int) -> None:
    """Count answers that the record has lost."""
    prepare()["unrecorded"].inc(answers)


def page() -> bytes:
    """Return the counts of all workers in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return bytes(generate_latest())
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return bytes(generate_latest(registry))
