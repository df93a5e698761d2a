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
    """Make what is counted: once, before any thread counts, and not before BentoML has set Prometheus's client up."""
    import prometheus_client as made

    return {
        "requests": made.Counter(
            "mobilenet_requests_total", "Requests answered", ["endpoint", "code", "model_version"]
        ),
        "seconds": made.Histogram(
            "mobilenet_request_seconds",
            "Seconds from a request's first byte to the end of its answer",
            ["endpoint", "model_version"],
            buckets=SECONDS,
        ),
        "images": made.Histogram(
            "mobilenet_images_per_request",
            "Images in a request that was answered",
            ["endpoint", "model_version"],
            buckets=IMAGES,
        ),
        "classes": made.Counter(
            "mobilenet_answers_total", "Images by the class that was answered", ["predicted_class", "model_version"]
        ),
        "unrecorded": made.Counter(
            "mobilenet_unrecorded_answers_total", "Answers that could not be written to the record"
        ),
    }


@lru_cache(512)
def _of(name: str, *labels: str) -> Any:
    """One series; looking it up by its labels takes longer than counting."""
    return prepare()[name].labels(*labels)


def count_request(endpoint: str, code: int, version: str, seconds: float) -> None:
    """One request, answered or refused; the version is "" where no model was asked."""
    _of("requests", endpoint, str(code), version).inc()
    _of("seconds", endpoint, version).observe(seconds)


def count_answers(endpoint: str, version: str, classes: list[str]) -> None:
    """The classes that one request was answered with."""
    _of("images", endpoint, version).observe(len(classes))
    for name, count in Counter(classes).items():
        _of("classes", name, version).inc(count)


def count_unrecorded(answers: int) -> None:
    """Answers that the record has lost."""
    prepare()["unrecorded"].inc(answers)


def page() -> bytes:
    """Everything counted, by all workers, in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return bytes(generate_latest())
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return bytes(generate_latest(registry))
