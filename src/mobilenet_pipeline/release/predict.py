"""One photo to the promoted models: the case study's demonstration."""

import json
from collections.abc import Mapping
from pathlib import Path

from mobilenet_pipeline.inference.artefact import Artefact, ArtefactError
from mobilenet_pipeline.inference.preprocess import decode
from mobilenet_pipeline.reports.tables import Answers


def predict(data: bytes, folders: Mapping[str, Path | None]) -> Answers:
    """Return each model's probabilities for an image file.

    `folders` maps a role to a folder with model.tflite and metadata.json; a role without a folder has no answer. Raises
    ImageError if the bytes are not a readable image, ArtefactError, naming the file, if a model cannot be read.
    """
    answers = {}
    for role, folder in folders.items():
        if folder is not None:
            artefact = Artefact(folder / "model.tflite")
            probabilities = artefact.predict(decode(data, artefact.image_shape[0])[None])[0].tolist()
            answers[role] = dict(zip(_class_names(folder), probabilities, strict=True))
    return answers


def _class_names(folder: Path) -> list[str]:
    path = folder / "metadata.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["class_names"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(f"{path} does not name the model's classes ({error}); package the model again") from None
