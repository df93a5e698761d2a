"""Artefacts that the registry has lost or damaged, restored from other copies with the right hash."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import ArtefactError, sha256_of
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.aliases import State
from mobilenet_pipeline.registry.documents import metadata
from mobilenet_pipeline.registry.versions import ARTEFACT, METADATA, PREDICTIONS, ArtefactsLost, Version
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.workspace.candidate import read_candidate
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json, write_json
from mobilenet_pipeline.workspace.paths import HERE

_log = logging.getLogger(__name__)


def fetch(recipe: Recipe, version: Version, folder: Path, workspace: Path = HERE) -> Path:
    """Return `folder` with the version's artefacts: the registry's, or other copies of what the registry has lost.

    Such copies are in the BentoML store, the workspace and DVC's cache. They count if their SHA-256 is the registered
    one. They go back to the registry, and a warning says so. predictions.npz may be missing in the end: then the model
    must be evaluated again. Raises ArtefactsLost or ArtefactError if there is no copy of the model.
    """
    try:
        return registry.fetch(version, folder)
    except (ArtefactsLost, ArtefactError, WorkspaceError) as lost:
        for path in folder.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        source = _collect(recipe, version, folder, workspace)
        if source is None:
            raise lost
        stored = registry.put_back(version, folder)
        fate = "went back to MLflow" if stored else f"serves here only, because {registry.lost_run(version)}"
        _log.warning("%s\nThe same artefact from %s %s.", lost, source, fate)
        return folder


def put_back(
    recipe: Recipe, versions: Iterable[Version | None], workspace: Path = HERE, damaged: bool = False
) -> list[str]:
    """Restore what the registry has lost of these versions; return a sentence for each of them.

    With `damaged`, the artefacts are read, and those that differ from the registered hash count as lost.
    """
    sentences = []
    for version in versions:
        if version is None or (_is_whole(version) if damaged else registry.is_stored(version)):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                complete = (fetch(recipe, version, Path(scratch), workspace) / PREDICTIONS).exists()
            except (ArtefactsLost, ArtefactError) as lost:
                sentences.append(f"{str(lost)[0].upper()}{str(lost)[1:]}.")
                continue
        if registry.is_stored(version):
            fate = "it is restored" if complete else "it is restored, except its predictions"
            sentences.append(f"MLflow had lost the artefact of version {version.version}; {fate}.")
    return sentences


def _is_whole(version: Version) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            registry.fetch(version, Path(scratch))
        except (ArtefactsLost, ArtefactError, WorkspaceError):
            return False
    return True


def lost(state: State) -> str | None:
    """Return a sentence if the registry has lost the artefact of the champion or the challenger."""
    for version in (state.champion, state.challenger):
        if version and not registry.is_stored(version):
            cause = registry.lost_run(version) or f"MLflow has no artefact of version {version.version} any more"
            return (
                f"{cause[0].upper()}{cause[1:]}; `mobilenet-pipeline doctor --repair --recipe {version.recipe}` "
                "restores the artefact if another copy of it exists."
            )
    return None


def _collect(recipe: Recipe, version: Version, folder: Path, workspace: Path) -> Path | None:
    """Copy the version's files from other places to `folder`; return the model's place, None if there is none."""
    model = _copy_with(version.sha256, ARTEFACT, workspace)
    document = _metadata(recipe, version, workspace)
    if model is None or document is None:
        return None
    shutil.copyfile(model, folder / ARTEFACT)
    identity = {"registered_model": version.name, "version": version.version, "run_id": version.run_id}
    write_json(folder / METADATA, document | identity)
    predictions = _copy_with(document["predictions_sha256"], PREDICTIONS, workspace)
    if predictions:
        shutil.copyfile(predictions, folder / PREDICTIONS)
    return model


def _metadata(recipe: Recipe, version: Version, workspace: Path) -> dict[str, Any] | None:
    """Return the version's metadata: that of its Bento, or made of the candidate's files if they are still there."""
    for path in sorted(bento.home().glob(f"models/*/*/{METADATA}")):
        try:
            document = read_json(path)
        except WorkspaceError:
            continue
        if (document.get("sha256"), document.get("data_digest")) == (version.sha256, version.data_digest):
            return document
    try:
        files = read_candidate(recipe, version.candidate, workspace)
    except ValueError:
        return None
    return metadata(version, recipe, files) if version.is_of(recipe, files) else None


def _copy_with(sha256: str, name: str, workspace: Path) -> Path | None:
    return next((path for path in _places(name, workspace) if sha256_of(path) == sha256), None)


def _places(name: str, workspace: Path) -> Iterator[Path]:
    """Yield files that may be a copy of the artefact called `name`."""
    yield from sorted(bento.home().glob(f"models/*/*/{name}"))
    yield from sorted(workspace.glob(f"models/*/*/{name}"))
    # DVC names its copies by another hash.
    yield from (path for path in sorted(workspace.glob(".dvc/cache/files/md5/*/*")) if path.is_file())
