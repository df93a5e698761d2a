"""A JSON line for every answered image, so that drift can be measured later. Images are kept only on request.

A thread of its own builds and writes many lines at a time: NumPy releases the GIL for every sum, and reacquiring it for
every answer costs 25 % of the throughput. The queue is bounded: with a full or slow disk, lines are lost and counted,
and answers are not delayed. BentoML's own monitor keeps one file a day without end, and writes before it answers.
"""

import base64
import logging.handlers
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

from serving import measures

WAITING_BYTES = 6 * 2**20
"""The most bytes of pixels that wait to be written, 2,048 images of 32 × 32; the lines of more are lost. One request
always fits."""
SECONDS = 0.1
"""Between two writes."""
TOGETHER_BYTES = 192 * 2**10
"""Bytes of pixels that are added up at once, 64 images of 32 × 32; more overflow the processor's cache and take twice
as long."""
NUMPY = orjson.OPT_SERIALIZE_NUMPY
FILE_BYTES, FILES = 10 * 2**20, 5


@dataclass(frozen=True)
class Answer:
    """The images uint8 (n, h, w, 3) of one request, and their predictions."""

    endpoint: str
    model: dict[str, str]
    predictions: list[dict[str, Any]]
    pixels: np.ndarray
    at: float = field(default_factory=time.time)


class Record:
    """The files `path`, `path.1`, … with the newest answers. Without a path nothing is recorded."""

    def __init__(self, path: Path | None, keep_images: bool = False) -> None:
        self.path, self.keep_images = path, keep_images
        self.waiting: list[Answer] = []
        self.waiting_bytes = 0
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

    def write(self) -> None:
        """Write the queued answers. Call it once more before the process ends."""
        with self.writing:
            with self.adding:
                answers, self.waiting, self.waiting_bytes = self.waiting, [], 0
            if not answers:
                return
            try:
                text = "\n".join(
                    orjson.dumps(line, option=NUMPY).decode() for line in describe(answers, self.keep_images)
                )
                self.handler.emit(logging.LogRecord("record", logging.INFO, "", 0, text, None, None))
            except Exception:  # the disk may raise any error
                measures.count_unrecorded(sum(len(answer.predictions) for answer in answers))

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(SECONDS)
            self.write()


def describe(answers: Sequence[Answer], keep_images: bool) -> Iterator[dict[str, Any]]:
    """Yield a line an image: time, model, prediction, and mean and spread of each colour (0 to 255)."""
    # A new champion may take images of another shape.
    for _, group in groupby(answers, lambda answer: answer.pixels.shape[1:]):
        yield from _describe_alike(list(group), keep_images)


def _describe_alike(answers: Sequence[Answer], keep_images: bool) -> Iterator[dict[str, Any]]:
    pixels = np.concatenate([answer.pixels for answer in answers])
    together = max(1, TOGETHER_BYTES // pixels[0].nbytes)
    moments = chain.from_iterable(
        zip(*_moments(pixels[start : start + together]), strict=True) for start in range(0, len(pixels), together)
    )
    rows = zip(pixels if keep_images else repeat(None), moments, strict=False)
    for answer in answers:
        at = datetime.fromtimestamp(answer.at, UTC).isoformat(timespec="milliseconds")
        # The predictions come first: `zip` then stops before it takes a row of the next answer.
        for prediction, (image, (mean, spread)) in zip(answer.predictions, rows, strict=False):
            yield {
                "at": at,
                "endpoint": answer.endpoint,
                **answer.model,
                "class": prediction["class"],
                "probabilities": prediction["probabilities"],
                "mean": mean,
                "spread": spread,
                **({} if image is None else {"pixels": base64.b64encode(image.tobytes()).decode()}),
            }


def _moments(pixels: np.ndarray) -> tuple[list[list[float]], list[list[float]]]:
    """Return mean and standard deviation of each colour of images (n, h, w, 3), both n by 3."""
    # NumPy adds up colour by colour three times as fast as pixel by pixel. Values around 0 keep the sum of squares of
    # a row of 1,024 pixels within 2^24, up to which float32 is exact.
    around = (pixels ^ 128).view(np.int8)
    colours = around.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    count = colours.shape[2] * colours.shape[3]
    mean = colours.reshape(len(pixels), 3, -1).sum(axis=2).astype(float) / count
    square = np.einsum("ijkl,ijkl->ijk", colours, colours).sum(axis=2, dtype=float) / count
    return (mean + 128).round(2).tolist(), np.sqrt(square - mean**2).round(2).tolist()


class _Raising(logging.handlers.RotatingFileHandler):
    """Raises an error that loses a line, which `logging` would only print."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
