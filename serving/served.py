"""The models in the Bento: which one plays which role, and what is known of it."""

import hashlib
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

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import IMAGE_SHAPE, Artefact
from serving.workers import THREADS

ROLES_FILE = Path(__file__).parent.parent / "served.json"
"""Written when the Bento is built: {"champion": model tag, "challenger": model tag or null}."""
PIECES, PIECE_SECONDS = (8, 32), 0.01
"""How many images of a batch are computed at once, at least and at most, and the seconds that they may take.

More need more memory, and take longer each where they no longer fit into the processor's caches; fewer spend
their time waiting for Python.
"""


class Served:
    """One version of the registered model, ready to answer. Any thread may ask it."""

    def __init__(self, folder: Path) -> None:
        self.metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        path = folder / "model.tflite"
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.metadata["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is {found}, it should be {self.metadata['sha256']}")
        trained = self.metadata.get("preprocessing")
        if trained and trained != preprocess.fingerprint():
            raise ValueError(
                f"this Bento decodes images otherwise than the training of version {self.metadata['version']} did: "
                "build it with the code and the version of Pillow that trained it, or train anew"
            )
        # Every thread computes on a copy of its own: two that share a network wait for each other in every layer.
        # Batches have their own, so that who sends one image need not wait for them.
        self.singles, self.batches = queue.SimpleQueue[Artefact](), queue.SimpleQueue[Artefact]()
        self.helpers = ThreadPoolExecutor(THREADS, thread_name_prefix="helper")
        self.version: str = self.metadata["version"]
        self.class_names: list[str] = self.metadata["class_names"]
        self.names = {"model_name": self.metadata["registered_model"], "model_version": self.version}
        one = np.zeros((1, *IMAGE_SHAPE), np.uint8)
        for _ in range(THREADS):
            single = Artefact(path, threads=1)
            # What is done for the first time takes longer; who is told "ready" is answered as fast as everybody.
            single.predict(one)
            self.singles.put(single)
            self.batches.put(Artefact(path, threads=1))
        fits = int(PIECE_SECONDS / min(_seconds(single, one) for _ in range(5)))
        self.piece = min(max(fits, PIECES[0]), PIECES[1])

    def predict(self, pixels: np.ndarray, alone: bool = False) -> list[dict[str, Any]]:
        """Class, confidence and probabilities for each of the images uint8 (n, 32, 32, 3).

        Several images are computed by one thread, or by all where nobody else is waiting for an answer.
        """
        if len(pixels) == 1:
            with _taken(self.singles) as (single,):
                shares = single.predict(pixels)
        else:
            shares = self._together(pixels, min(THREADS, len(pixels) // PIECES[0]) if alone else 1)
        best = shares.argmax(axis=1).tolist()
        return [
            {
                "class": self.class_names[index],
                "confidence": row[index],
                # float32 as it is: JSON gets no more digits than it has.
                "probabilities": dict(zip(self.class_names, row, strict=True)),
            }
            for index, row in zip(best, shares, strict=True)
        ]

    def _together(self, pixels: np.ndarray, threads: int) -> np.ndarray:
        with _taken(self.batches, threads) as (first, *others):
            part, *parts = np.array_split(pixels, 1 + len(others))
            helped = [self.helpers.submit(self._in_pieces, *each) for each in zip(others, parts, strict=True)]
            return np.concatenate([self._in_pieces(first, part), *(each.result() for each in helped)])

    def _in_pieces(self, copy: Artefact, pixels: np.ndarray) -> np.ndarray:
        starts = range(0, len(pixels), self.piece)
        return np.concatenate([copy.predict(pixels[start : start + self.piece]) for start in starts])

    def description(self) -> dict[str, Any]:
        """Where the model comes from, how good it is on the test images, and the verdict that promoted it."""
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
            **{key: self.metadata.get(key) for key in keys},
            "verdict": self.metadata.get("verdict"),
        }


def _seconds(model: Artefact, pixels: np.ndarray) -> float:
    started = time.perf_counter()
    model.predict(pixels)
    return time.perf_counter() - started


@contextmanager
def _taken(copies: "queue.SimpleQueue[Artefact]", most: int = 1) -> Iterator[list[Artefact]]:
    """One of the copies, as soon as one is free, and more of them if they are free then."""
    taken = [copies.get()]
    try:
        with suppress(queue.Empty):
            while len(taken) < most:
                taken.append(copies.get_nowait())
        yield taken
    finally:
        for copy in taken:
            copies.put(copy)


Roles = dict[str, Served | None]
"""{"champion": …, "challenger": … or None}"""


def load_served(roles_file: Path = ROLES_FILE) -> Roles:
    """Champion and challenger. Raises ValueError naming the file that is not what was packaged."""
    roles = json.loads(roles_file.read_text(encoding="utf-8"))
    return {role: Served(Path(bentoml.models.get(tag).path)) if tag else None for role, tag in roles.items()}
