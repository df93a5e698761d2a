"""One photo to the promoted models: the case study's demonstration."""

import json
from collections.abc import Mapping
from pathlib import Path

from mobilenet_pipeline.inference.artefact import Artefact, ArtefactError
from mobilenet_pipeline.inference.preprocess import Resize, decode
from mobilenet_pipeline.inference.trust import Thresholds
from mobilenet_pipeline.reports.tables import Answer


def predict(data: bytes, folders: Mapping[str, Path | None]) -> dict[str, Answer]:
    """Return each model's answer for an image file, by role.

    `folders` maps a role to a folder with model.tflite and metadata.json; a role without a folder has no answer. Raises
    ImageError if the bytes are not a readable image, ArtefactError, naming the file, if a model cannot be read.
    """
    answers = {}
    for role, folder in folders.items():
        if folder is not None:
            artefact = Artefact(folder / "model.tflite")
            names, thresholds, resize = _metadata(folder)
            answered = artefact.answer(decode(data, artefact.image_shape[0], resize)[None])
            (remark,) = thresholds.remarks(answered, names)
            probabilities = dict(zip(names, answered.probabilities[0].tolist(), strict=True))
            answers[role] = Answer(probabilities, thresholds.coverage, **remark)
    return answers


def _metadata(folder: Path) -> tuple[list[str], Thresholds, Resize]:
    path = folder / "metadata.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return list(document["class_names"]), Thresholds.of(document), document.get("resize", "crop")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} does not describe the model ({error}); package the model again") from None
