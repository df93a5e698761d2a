"""The models of the Bento: which version has which role, and how a version answers."""

import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import Answers, Artefact, check_sha256
from mobilenet_pipeline.inference.trust import Thresholds
from serving import settings

ROLES_FILE = Path(__file__).parent.parent / "served.json"
"""Written when the Bento is built: {"champion": model tag, "challenger": model tag or null}."""
PIECES, PIECE_SECONDS = (8, 32), 0.01
"""The smallest and the largest piece of a batch in images, and the seconds that a piece may take.

Larger pieces need more memory and overflow the processor's caches; smaller pieces spend their time waiting for Python.
"""
QUICK_SECONDS = 0.0005
"""The longest time of one image with which a network counts as quick."""


class Served:
    """One version of the registered model, ready to answer. Any thread may call `predict`.

    `image_shape` is the (h, w, 3) of its images. A network that `is_quick` answers one image within `QUICK_SECONDS`.
    Raises ValueError if the artefact is damaged, or if this code decodes images differently from the training.
    """

    def __init__(self, folder: Path) -> None:
        self.metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        path = folder / "model.tflite"
        check_sha256(path, self.metadata["sha256"])
        trained = self.metadata.get("preprocessing")
        if trained and trained != preprocess.fingerprint():
            raise ValueError(
                f"this Bento decodes images differently from the training of version {self.metadata['version']}: build "
                "it with the code and the Pillow version of the training, or train again"
            )
        # Every thread has its own copy: two threads that share a network wait for each other in every layer. Batches
        # have their own copies, so that a single image does not wait for them. A quick network has one more, for the
        # thread that speaks HTTP.
        self.singles, self.batches = queue.SimpleQueue[Artefact](), queue.SimpleQueue[Artefact]()
        self.threads = settings.threads()
        self.helpers = ThreadPoolExecutor(self.threads, thread_name_prefix="helper")
        self.version: str = self.metadata["version"]
        self.class_names: list[str] = self.metadata["class_names"]
        self.names = {"model_name": self.metadata["registered_model"], "model_version": self.version}
        self.thresholds = Thresholds.of(self.metadata)
        self.says = self.names | {"coverage": self.thresholds.coverage}
        """What an answer says of the version."""
        for _ in range(self.threads):
            self.singles.put(single := _warm(path))
            self.batches.put(Artefact(path, threads=1))
        self.image_shape = single.image_shape
        one = np.zeros((1, *self.image_shape), np.uint8)
        seconds = min(_seconds(single, one) for _ in range(5))
        self.is_quick = seconds <= QUICK_SECONDS
        if self.is_quick:
            self.singles.put(_warm(path))
        fitting = int(PIECE_SECONDS / seconds)
        self.piece = min(max(fitting, PIECES[0]), PIECES[1])

    @property
    def size(self) -> int:
        """Return the side of the model's square images in pixels."""
        return self.image_shape[0]

    @property
    def resize(self) -> preprocess.Resize:
        """Return how an image becomes a square, as in the training: "crop" or "pad"."""
        return self.metadata.get("resize", "crop")

    def predict(self, pixels: np.ndarray, alone: bool = False) -> list[dict[str, Any]]:
        """Return class, confidence, probabilities, prediction set and flag of the images uint8 (n, *image_shape).

        One thread computes a batch. All threads compute it if it is `alone`, that is, the only request.
        """
        if len(pixels) == 1:
            with _borrow(self.singles) as (single,):
                answers = single.answer(pixels)
        else:
            answers = self._batch(pixels, min(self.threads, len(pixels) // PIECES[0]) if alone else 1)
        best = answers.probabilities.argmax(axis=1).tolist()
        remarks = self.thresholds.remarks(answers, self.class_names)
        return [
            {
                "class": self.class_names[index],
                "confidence": row[index],
                # float32, so that JSON gets no more digits than it has.
                "probabilities": dict(zip(self.class_names, row, strict=True)),
                **remark,
            }
            for index, row, remark in zip(best, answers.probabilities, remarks, strict=True)
        ]

    def _batch(self, pixels: np.ndarray, threads: int) -> Answers:
        with _borrow(self.batches, threads) as (first, *others):
            part, *parts = np.array_split(pixels, 1 + len(others))
            helped = [self.helpers.submit(self._in_pieces, *job) for job in zip(others, parts, strict=True)]
            return Answers.joined([self._in_pieces(first, part), *(job.result() for job in helped)])

    def _in_pieces(self, copy: Artefact, pixels: np.ndarray) -> Answers:
        starts = range(0, len(pixels), self.piece)
        return Answers.joined(copy.answer(pixels[start : start + self.piece]) for start in starts)

    def description(self) -> dict[str, Any]:
        """Return the model's origin, image shape, test accuracy, and the verdict that promoted it."""
        keys = (
            "version",
            "run_id",
            "recipe",
            "candidate",
            "data_digest",
            "git_commit",
            "sha256",
            "class_names",
            "test",
        )
        return {
            "name": self.metadata["registered_model"],
            "accuracy": self.metadata["test"]["accuracy"],
            "image_shape": list(self.image_shape),
            "coverage": self.thresholds.coverage,
            **{key: self.metadata.get(key) for key in keys},
            "verdict": self.metadata.get("verdict"),
        }


def _warm(path: Path) -> Artefact:
    """Return a copy that has predicted once, which takes longer than later predictions; "ready" comes after it."""
    copy = Artefact(path, threads=1)
    copy.predict(np.zeros((1, *copy.image_shape), np.uint8))
    return copy


def _seconds(model: Artefact, pixels: np.ndarray) -> float:
    started = time.perf_counter()
    model.predict(pixels)
    return time.perf_counter() - started


@contextmanager
def _borrow(copies: "queue.SimpleQueue[Artefact]", limit: int = 1) -> Iterator[list[Artefact]]:
    """Wait for one free copy, and take up to `limit` if more are free then."""
    borrowed = [copies.get()]
    try:
        with suppress(queue.Empty):
            while len(borrowed) < limit:
                borrowed.append(copies.get_nowait())
        yield borrowed
    finally:
        for copy in borrowed:
            copies.put(copy)


Roles = dict[str, Served | None]
"""{"champion": …, "challenger": … or None}"""


def load_served(roles_file: Path = ROLES_FILE, models: Path | None = None) -> Roles:
    """Return champion and challenger. `models` is a folder of models; the default is that of the running Bento.

    Raises ValueError if one of them cannot be served, or if they take images of different shapes.
    """
    tags = json.loads(roles_file.read_text(encoding="utf-8"))

    def folder(tag: str) -> Path:
        return models / tag.replace(":", "/") if models else Path(bentoml.models.get(tag).path)

    roles = {role: Served(folder(tag)) if tag else None for role, tag in tags.items()}
    shapes = {role: model.image_shape for role, model in roles.items() if model}
    if len({*shapes.values()}) > 1:
        raise ValueError(f"the models of a Bento take images of one shape, not {shapes}; package models of one shape")
    return roles
