"""What was asked and answered, a JSON line each, for whoever looks for drift later.

Never the image itself, unless told.

Lines are made and written by a thread of their own, many at a time: NumPy gives Python's lock up for every sum, and who
has to have it back a few times for every answer loses a quarter of its speed. What waits is bounded: a full disk or a
slow one loses lines, which are counted, and never an answer. BentoML's own monitor keeps a file a day for ever, and
writes while the request waits.
"""

import base64
import logging.handlers
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serving import measures

WAITING = 2000
"""Images whose lines wait to be written, 6 MB; those of more are lost."""
SECONDS = 0.1
"""Between two looks for what waits."""
TOGETHER = 64
"""Images that are added up at once; more no longer fit into a processor's cache, and take twice as long."""
NUMPY = orjson.OPT_SERIALIZE_NUMPY
FILE_BYTES, FILES = 10 * 2**20, 5


@dataclass(frozen=True)
class Answer:
    """The images uint8 (n, 32, 32, 3) of one request, and what was said of them."""

    endpoint: str
    model: dict[str, str]
    predictions: list[dict[str, Any]]
    pixels: np.ndarray
    at: float = field(default_factory=time.time)


class Record:
    """The files `path`, `path.1`, … with the newest answers; without a path, nothing is kept."""

    def __init__(self, path: Path | None, keep_images: bool = False) -> None:
        self.path, self.keep_images = path, keep_images
        self.waiting: list[Answer] = []
        self.images = 0
        self.adding, self.writing = threading.Lock(), threading.Lock()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = _Raising(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
            threading.Thread(target=self._write_for_ever, name="record", daemon=True).start()

    def add(self, answer: Answer) -> None:
        """Keep the answer, some time soon. Never waits for the disk and never fails."""
        count = len(answer.predictions)
        with self.adding:
            if fits := self.path and self.images + count <= WAITING:
                self.waiting.append(answer)
                self.images += count
        if self.path and not fits:
            measures.count_unrecorded(count)

    def write(self) -> None:
        """Write what waits; also to be called at the end."""
        with self.writing:
            with self.adding:
                answers, count = self.waiting, self.images
                self.waiting, self.images = [], 0
            if not answers:
                return
            try:
                text = "\n".join(
                    orjson.dumps(line, option=NUMPY).decode() for line in describe(answers, self.keep_images)
                )
                self.handler.emit(logging.LogRecord("record", logging.INFO, "", 0, text, None, None))
            except Exception:  # whatever the disk says
                measures.count_unrecorded(count)

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(SECONDS)
            self.write()


def describe(answers: Sequence[Answer], keep_images: bool) -> Iterator[dict[str, Any]]:
    """A line an image: time, model, answer, and per colour the mean and spread of its pixels (0 to 255)."""
    pixels = np.concatenate([answer.pixels for answer in answers])
    moments = chain.from_iterable(
        zip(*_moments(pixels[start : start + TOGETHER]), strict=True) for start in range(0, len(pixels), TOGETHER)
    )
    rows = zip(pixels if keep_images else repeat(None), moments, strict=False)
    for answer in answers:
        at = datetime.fromtimestamp(answer.at, UTC).isoformat(timespec="milliseconds")
        # The predictions first: when they end, no row has been taken for the next.
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
    """Mean and spread of each colour of images (n, 32, 32, 3), both n by 3."""
    # Colour by colour, NumPy adds up three times as fast as pixel by pixel. Around 128, no sum of squares is more than
    # 2^24, up to which float32 has every whole number.
    around = (pixels ^ 128).view(np.int8).reshape(len(pixels), -1, 3)
    colours = around.transpose(0, 2, 1).astype(np.float32, order="C")
    count = colours.shape[2]
    mean = colours.sum(axis=2).astype(float) / count
    square = np.einsum("ijk,ijk->ij", colours, colours).astype(float) / count
    return (mean + 128).round(2).tolist(), np.sqrt(square - mean**2).round(2).tolist()


class _Raising(logging.handlers.RotatingFileHandler):
    """Lets the writer know that a line is lost, where logging would print to the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
