"""Read the files that the stages wrote for a candidate."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import check_sha256
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.files import WorkspaceError, existing, read_json
from mobilenet_pipeline.workspace.paths import HERE


@dataclass(frozen=True)
class CandidateFiles:
    """The files of one artefact: its folder, its documents, and the SHA-256 of model.tflite.

    `training` and `history` are those of the candidate; its int8 twin has the same.
    """

    name: str
    folder: Path
    training: dict[str, Any]
    metrics: dict[str, Any]
    dataset: dict[str, Any]
    history: list[dict[str, float]] = field(repr=False)
    sha256: str

    @property
    def data_digest(self) -> str:
        """The digest of the dataset that the candidate was trained and tested on."""
        return str(self.metrics["data_digest"])


def read_candidate(recipe: Recipe, name: str, workspace: Path = HERE) -> CandidateFiles:
    """Read the files of a candidate or its twin.

    Raises WorkspaceError, naming the file, if one is missing, damaged or of other data, and ArtefactError if the
    artefact does not match its SHA-256.
    """
    recipe.candidate(name)
    folder = paths.model_folder(recipe, name, workspace)
    trained = paths.model_folder(recipe, recipe.artefacts[name].candidate, workspace)
    places = {
        "training": trained / "training.json",
        "dataset": paths.data_folder(recipe, workspace) / "dataset.json",
        "metrics": paths.metrics_path(recipe, name, workspace),
    }
    documents = {key: read_json(path) for key, path in places.items()}
    digest = documents["metrics"]["data_digest"]
    for document, key in (("training", "data_digest"), ("dataset", "digest")):
        if documents[document][key] != digest:
            raise WorkspaceError(
                f"{places[document]} is of data {documents[document][key]}, {places['metrics']} of {digest}; "
                f"mobilenet-pipeline run --recipe {recipe.name} makes them consistent"
            )
    sha256 = str(read_json(folder / "export.json")["sha256"])
    check_sha256(existing(folder / "model.tflite"), sha256)
    existing(folder / "predictions.npz")
    with existing(trained / "history.csv").open(newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return CandidateFiles(name, folder, **documents, history=history, sha256=sha256)
