"""What was asked and answered, a JSON line each, for whoever looks for drift later.

Never the image itself, unless told.

Written by a thread of its own from a queue that is bounded: a full disk or a slow one loses lines, which are counted,
and never an answer. BentoML's own monitor keeps a file a day for ever, and writes while the request waits.
"""

import base64
import logging.handlers
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serving import measures

WAITING = 100
"""Requests whose lines wait to be written; those of more are lost. A batch of 256 images takes a megabyte."""
FILE_BYTES, FILES = 10 * 2**20, 5


@dataclass(frozen=True)
class Answer:
    """The images uint8 (n, 32, 32, 3) of one request, and what was said of them."""

    endpoint: str
    model: dict[str, str]
    predictions: list[dict[str, Any]]
    pixels: np.ndarray


class Record:
    """The files `path`, `path.1`, … with the newest answers; without a path, nothing is kept."""

    def __init__(self, path: Path | None, keep_images: bool = False) -> None:
        self.keep_images = keep_images
        self.waiting: queue.Queue[Answer] | None = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = _Raising(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
            self.waiting = queue.Queue(WAITING)
            threading.Thread(target=self._write_for_ever, name="record", daemon=True).start()

    def add(self, answer: Answer) -> None:
        """Keep the answer, some time soon. Never waits and never fails."""
        if self.waiting is None:
            return
        try:
            self.waiting.put_nowait(answer)
        except queue.Full:
            measures.count_unrecorded(len(answer.predictions))

    def _write_for_ever(self) -> None:
        assert self.waiting is not None
        while True:
            answer = self.waiting.get()
            try:
                text = "\n".join(orjson.dumps(line).decode() for line in describe(answer, self.keep_images))
                self.handler.emit(logging.LogRecord("record", logging.INFO, "", 0, text, None, None))
            except Exception:  # whatever the disk says
                measures.count_unrecorded(len(answer.predictions))


def describe(answer: Answer, keep_images: bool) -> Iterator[dict[str, Any]]:
    """A line an image: time, model, answer, and per colour the mean and spread of its pixels (0 to 255)."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    # Colour by colour NumPy adds up three times as fast as pixel by pixel, and answers wait for this thread's turns.
    colours = answer.pixels.reshape(len(answer.pixels), -1, 3).transpose(0, 2, 1).astype(np.float32, order="C")
    means, spreads = (of(axis=2).astype(float).round(2).tolist() for of in (colours.mean, colours.std))
    for prediction, image, mean, spread in zip(answer.predictions, answer.pixels, means, spreads, strict=True):
        yield {
            "at": at,
            "endpoint": answer.endpoint,
            **answer.model,
            "class": prediction["class"],
            "probabilities": {name: round(float(share), 5) for name, share in prediction["probabilities"].items()},
            "mean": mean,
            "spread": spread,
            **({"pixels": base64.b64encode(image.tobytes()).decode()} if keep_images else {}),
        }


class _Raising(logging.handlers.RotatingFileHandler):
    """Lets the writer know that a line is lost, where logging would print to the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
