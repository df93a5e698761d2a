"""A JSON line for every answered image and every failed request, so that drift can be measured later.

Images are kept only on request. `mobilenet-pipeline monitor` reads the record.

A thread of its own builds and writes many lines at a time: NumPy releases the GIL for every sum, and reacquiring it for
every answer costs 25 % of the throughput. The queue is bounded: with a full or slow disk, lines are lost and counted,
and answers are not delayed. The log has the error of the disk when it begins or changes. BentoML's own monitor keeps
one file a day without end, and writes before it answers.
"""

import base64
import logging.handlers
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mobilenet_pipeline.inference import statistics
from serving import measures

LOG = logging.getLogger("bentoml.serving.record")
WAITING_BYTES = 6 * 2**20
"""The most bytes of pixels that wait to be written, 2,048 images of 32 × 32; the lines of more are lost. One request
always fits."""
WAITING_FAULTS = 2048
"""The most failed requests that wait to be written; the lines of more are lost."""
SECONDS = 0.1
"""Between two writes."""
TOGETHER_BYTES = 192 * 2**10
"""Bytes of pixels that are measured at once, 64 images of 32 × 32; more overflow the processor's cache and take twice
as long."""
DIGITS = 2
"""Of every measurement after the point."""
NUMPY = orjson.OPT_SERIALIZE_NUMPY
FILE_BYTES, FILES = 10 * 2**20, 5


@dataclass(frozen=True)
class Answer:
    """The images uint8 (n, h, w, 3) of one request, their predictions, and the milliseconds that these took."""

    endpoint: str
    model: dict[str, str]
    predictions: list[dict[str, Any]]
    pixels: np.ndarray
    milliseconds: float
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Fault:
    """A request, or a file of a batch, that got no answer from `model_name`, and the HTTP status of its refusal."""

    endpoint: str
    model_name: str
    status: int
    at: float = field(default_factory=time.time)


def answer_ids(count: int) -> list[str]:
    """Return the ids of the answers of one request: 16 random hexadecimal digits, and the place among several."""
    request = secrets.token_hex(8)
    return [request] if count == 1 else [f"{request}-{index}" for index in range(count)]


class Record:
    """The files `path`, `path.1`, … with the newest answers. Without a path nothing is recorded."""

    def __init__(self, path: Path | None, keep_images: bool = False) -> None:
        self.path, self.keep_images = path, keep_images
        self.waiting: list[Answer] = []
        self.faults: list[Fault] = []
        self.waiting_bytes = 0
        self.error = ""  # of the last write
        self.adding, self.writing = threading.Lock(), threading.Lock()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = _Raising(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
            threading.Thread(target=self._write_for_ever, name="record", daemon=True).start()

    def add(self, answer: Answer) -> None:
        """Queue the answer. Never waits for the disk and never fails."""
        with self.adding:
            size = self.waiting_bytes + answer.pixels.nbytes
            if fits := self.path and (size <= WAITING_BYTES or not self.waiting):
                self.waiting.append(answer)
                self.waiting_bytes = size
        if self.path and not fits:
            measures.count_unrecorded(len(answer.predictions))

    def fail(self, fault: Fault) -> None:
        """Queue the failed request. Never waits for the disk and never fails."""
        with self.adding:
            if fits := self.path and len(self.faults) < WAITING_FAULTS:
                self.faults.append(fault)
        if self.path and not fits:
            measures.count_unrecorded(1)

    def write(self) -> None:
        """Write what is queued. Call it once more before the process ends."""
        with self.writing:
            with self.adding:
                answers, self.waiting, self.waiting_bytes = self.waiting, [], 0
                faults, self.faults = self.faults, []
            if not answers and not faults:
                return
            try:
                lines = chain(describe(answers, self.keep_images), map(describe_fault, faults))
                text = "\n".join(orjson.dumps(line, option=NUMPY).decode() for line in lines)
                self.handler.emit(logging.LogRecord("record", logging.INFO, "", 0, text, None, None))
                self.error = ""
            except Exception as error:  # the disk may raise any error
                if str(error) != self.error:  # a full disk fails ten times a second
                    LOG.warning("answers are not recorded in %s: %s", self.path, error)
                self.error = str(error)
                measures.count_unrecorded(sum(len(answer.predictions) for answer in answers) + len(faults))

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(SECONDS)
            self.write()


def describe(answers: Sequence[Answer], keep_images: bool) -> Iterator[dict[str, Any]]:
    """Yield a line an image: time, model, prediction with its id, latency, and what `statistics.measure` returns."""
    # A new champion may take images of another shape.
    for _, group in groupby(answers, lambda answer: answer.pixels.shape[1:]):
        yield from _describe_alike(list(group), keep_images)


def _describe_alike(answers: Sequence[Answer], keep_images: bool) -> Iterator[dict[str, Any]]:
    pixels = np.concatenate([answer.pixels for answer in answers])
    together = max(1, TOGETHER_BYTES // pixels[0].nbytes)
    measured = chain.from_iterable(
        _measure(pixels[start : start + together]) for start in range(0, len(pixels), together)
    )
    rows = zip(pixels if keep_images else repeat(None), measured, strict=False)
    for answer in answers:
        same = {
            "at": _time(answer.at),
            "endpoint": answer.endpoint,
            **answer.model,
            "ms": round(answer.milliseconds, 2),
        }
        # The predictions come first: `zip` then stops before it takes a row of the next answer.
        for prediction, (image, values) in zip(answer.predictions, rows, strict=False):
            kept = {} if image is None else {"pixels": base64.b64encode(image.tobytes()).decode()}
            yield {**same, **prediction, **dict(zip(statistics.MEASURED, values, strict=True)), **kept}


def _measure(pixels: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Yield what `statistics.measure` returns, image by image."""
    measured = statistics.measure(pixels)
    return zip(*(measured[name].round(DIGITS).tolist() for name in statistics.MEASURED), strict=True)


def describe_fault(fault: Fault) -> dict[str, Any]:
    """Return the line of a failed request."""
    return {
        "at": _time(fault.at),
        "endpoint": fault.endpoint,
        "model_name": fault.model_name,
        "status": fault.status,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class _Raising(logging.handlers.RotatingFileHandler):
    """Raises an error that loses a line, which `logging` would only print."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
