"""The models in the Bento: which one plays which role, and what is known of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import Artefact

ROLES_FILE = Path(__file__).parent.parent / "served.json"
"""Written when the Bento is built: {"champion": model tag, "challenger": model tag or null}."""


class Served:
    """One version of the registered model, ready to answer."""

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
        # One thread: for one small image a second one costs more than it brings, and requests share the processors.
        self.artefact = Artefact(path, threads=1)
        self.class_names: list[str] = self.metadata["class_names"]

    def answer(self, pixels: np.ndarray) -> dict[str, Any]:
        """What the model says of the image uint8 (1, 32, 32, 3)."""
        probabilities = self.artefact.predict(pixels)[0]
        best = int(probabilities.argmax())
        shares = probabilities.tolist()
        return {
            "class": self.class_names[best],
            "confidence": shares[best],
            "probabilities": dict(zip(self.class_names, shares, strict=True)),
            "model_name": self.metadata["registered_model"],
            "model_version": self.metadata["version"],
        }

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


def load_served(roles_file: Path = ROLES_FILE) -> dict[str, Served | None]:
    """Champion and challenger. Raises ValueError naming the file that is not what was packaged."""
    roles = json.loads(roles_file.read_text(encoding="utf-8"))
    return {role: Served(Path(bentoml.models.get(tag).path)) if tag else None for role, tag in roles.items()}
