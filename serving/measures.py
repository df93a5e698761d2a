"""What the service counts, for Prometheus to collect at `/metrics`, under its own names and under BentoML's.

BentoML's own middleware would make a series of every unknown address, and take longer than the rest of the front door.
"""

import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import bentoml
import psutil

VERSION_HEADER = b"x-model-version"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BENTOML = {
    "mobilenet_requests": "bentoml_service_request",
    "mobilenet_request_seconds": "bentoml_service_request_duration_seconds",
}
"""Metrics that are shown under BentoML's names, too, which dashboards for its services know; without the version."""
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
            ["endpoint", "code", "model_version"],
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
        "working": prometheus_client.Gauge(
            "bentoml_service_request_in_progress",
            "Requests that have begun and are not answered",
            ["endpoint", *_service()],
            multiprocess_mode="livesum",
        ),
    }


def _service() -> dict[str, str]:
    """Return BentoML's labels of the service. The version is that of the Bento that was started, whatever is live."""
    context = bentoml.server_context
    return {
        "service_name": context.bento_name,
        "service_version": context.bento_version,
        "runner_name": context.service_name or "",
    }


@lru_cache
def _working(endpoint: str) -> Any:
    return prepare()["working"].labels(endpoint, *_service().values())


@lru_cache(512)
def _series(name: str, *labels: str) -> Any:
    """Return one time series. Finding it by its labels takes longer than counting."""
    return prepare()[name].labels(*labels)


def begin_request(endpoint: str) -> None:
    """Count a request as begun; `count_request` ends it."""
    _working(endpoint).inc()


def count_request(endpoint: str, code: int, version: str, seconds: float) -> None:
    """Count one request, answered or refused; `version` is "" if no model computed it."""
    _series("requests", endpoint, str(code), version).inc()
    _series("seconds", endpoint, str(code), version).observe(seconds)
    _working(endpoint).dec()


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
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        _forget_killed_workers()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return bytes(generate_latest(_BothNames(registry)))


class _BothNames:
    """A registry whose metrics of BENTOML are there twice."""

    def __init__(self, registry: Any) -> None:
        self.registry = registry

    def collect(self) -> Iterator[Any]:
        """Yield every metric, and after it the same under BentoML's name."""
        for metric in self.registry.collect():
            yield metric
            if metric.name in BENTOML:
                yield _renamed(metric, BENTOML[metric.name])


def _renamed(metric: Any, name: str) -> Any:
    """Return the metric under BentoML's name and with its labels, added up over the model versions."""
    from prometheus_client import Metric

    sums: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for sample in metric.samples:
        labels = {**sample.labels, **_service(), "http_response_code": sample.labels["code"]}
        del labels["code"], labels["model_version"]
        sums[sample.name.replace(metric.name, name), tuple(sorted(labels.items()))] += sample.value
    renamed = Metric(name, metric.documentation, metric.type)
    for (series, pairs), value in sums.items():
        renamed.add_sample(series, dict(pairs), value)
    return renamed


def _forget_killed_workers() -> None:
    """Remove the gauges of workers that have ended: their requests are in progress no more."""
    from prometheus_client import multiprocess

    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            multiprocess.mark_process_dead(pid)
