"""Find the reference of a registered version: in the registry, or made from the workspace that trained it."""

import json
import tempfile
from pathlib import Path

import numpy as np

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.evaluation.predictions import read_arrays
from mobilenet_pipeline.evaluation.reference import Reference, ReferenceError, describe
from mobilenet_pipeline.registry import reference as store
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.release import restore
from mobilenet_pipeline.workspace import files, paths
from mobilenet_pipeline.workspace.paths import HERE


def find(recipe: Recipe, version: Version, workspace: Path = HERE) -> Reference:
    """Return the version's reference.

    A version that was registered before references were stored gets its reference from the dataset in the workspace,
    and the registry keeps it. Raises ReferenceError if neither has it.
    """
    stored = store.fetch(version)
    if stored:
        return Reference.from_bytes(stored, f"monitoring/reference.npz of {version.name} version {version.version}")
    made = _make(recipe, version, workspace)
    store.put(version, made.to_bytes())
    return made


def _make(recipe: Recipe, version: Version, workspace: Path) -> Reference:
    data = paths.data_folder(recipe, workspace)
    digest = files.read_json(data / "dataset.json")["digest"] if (data / "dataset.json").is_file() else None
    if digest != version.data_digest or not (data / "images.npy").is_file():
        raise ReferenceError(
            f"MLflow has no reference of {version.name} version {version.version}, and {data} does not have the images "
            "that the version was tested on; run `mobilenet-pipeline monitor` once in the workspace that trained it"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = restore.fetch(recipe, version, Path(scratch), workspace)
        arrays = read_arrays(folder / "predictions.npz")
        names = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["class_names"]
    return describe(np.load(data / "images.npy", mmap_mode="r"), arrays["rows"], arrays["probabilities"], names)
