"""The models in the Bento: which one plays which role, and what is known of it."""

import hashlib
import json
import os
import queue
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import IMAGE_SHAPE, Artefact

ROLES_FILE = Path(__file__).parent.parent / "served.json"
"""Written when the Bento is built: {"champion": model tag, "challenger": model tag or null}."""
CORES = int(os.environ.get("SERVING_CORES") or len(os.sched_getaffinity(0)))
"""Processors that the service may keep busy; a container's limit has to be told."""
WORKERS = int(os.environ.get("SERVING_WORKERS") or max(1, CORES // 2))
THREADS = max(1, CORES // WORKERS)
"""Of each worker, that decode and compute."""


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
        # For one small image a second thread costs more than it brings: each core computes one of its own. Batches have
        # a model of their own, because a model that is asked for another number of images sets its memory up anew.
        self.singles: queue.SimpleQueue[Artefact] = queue.SimpleQueue()
        self.batch = Artefact(path, threads=THREADS)
        self.version: str = self.metadata["version"]
        self.class_names: list[str] = self.metadata["class_names"]
        self.names = {"model_name": self.metadata["registered_model"], "model_version": self.version}
        for _ in range(THREADS):
            single = Artefact(path, threads=1)
            # What is done for the first time takes longer; who is told "ready" is answered as fast as everybody.
            single.predict(np.zeros((1, *IMAGE_SHAPE), np.uint8))
            self.singles.put(single)

    def predict(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Class, confidence and probabilities for each of the images uint8 (n, 32, 32, 3)."""
        shares = self._alone(pixels) if len(pixels) == 1 else self.batch.predict(pixels)
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

    def _alone(self, image: np.ndarray) -> np.ndarray:
        single = self.singles.get()
        try:
            return single.predict(image)
        finally:
            self.singles.put(single)

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


Roles = dict[str, Served | None]
"""{"champion": …, "challenger": … or None}"""


def load_served(roles_file: Path = ROLES_FILE) -> Roles:
    """Champion and challenger. Raises ValueError naming the file that is not what was packaged."""
    roles = json.loads(roles_file.read_text(encoding="utf-8"))
    return {role: Served(Path(bentoml.models.get(tag).path)) if tag else None for role, tag in roles.items()}
