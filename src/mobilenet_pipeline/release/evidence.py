"""The evidence that a verdict rests on: candidates, registry and champion, each file read once."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.evaluation.evaluate import evaluate, is_complete, time_in_turn
from mobilenet_pipeline.evaluation.predictions import Predictions, predictions_of, read_arrays, read_predictions
from mobilenet_pipeline.gate.verdict import Usage
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import ArtefactError
from mobilenet_pipeline.registry.aliases import State, read_state
from mobilenet_pipeline.registry.versions import ArtefactsLost, Version, fetch, number_of, tags_of_run
from mobilenet_pipeline.release import restore
from mobilenet_pipeline.workspace import history, ledger, paths
from mobilenet_pipeline.workspace.candidate import CandidateFiles, read_candidate
from mobilenet_pipeline.workspace.files import read_json
from mobilenet_pipeline.workspace.paths import HERE

LISTED = 10
"""How many classes an error names."""
CHAMPION = "the champion"  # no candidate can have this name


class JudgingError(ValueError):
    """The champion and the candidates cannot be compared."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The champion on the candidates' test images: its predictions, and whether it was evaluated for that."""

    predictions: Predictions
    again: bool


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that a verdict rests on; each file is read once.

    By candidate: `arrays` are those of predictions.npz, `tags` those of the training's run. `champion` is None without
    a champion, and if the service cannot serve it any more because it decodes images differently. `images` is the whole
    dataset, memory-mapped.
    """

    files: dict[str, CandidateFiles]
    arrays: dict[str, dict[str, np.ndarray]]
    predictions: dict[str, Predictions]
    state: State
    tags: dict[str, dict[str, str]]
    champion: Measured | None
    preprocessing: str
    usage: Usage
    images: np.ndarray | None


def collect(recipe: Recipe, workspace: Path = HERE, dry: bool = False) -> Evidence:
    """Read the candidates' files and the registry; evaluate the champion if its predictions are of other data.

    The comparisons with the champion are recorded before anything is compared: each of them uses up a part of the test
    images' error budget, whatever comes of it. With `dry`, nothing is recorded, restored or evaluated.

    Raises ValueError naming the file or version that is missing, damaged or of other data.
    """
    files = {name: read_candidate(recipe, name, workspace) for name in recipe.artefacts}
    arrays = {name: read_predictions(files[name].folder / "predictions.npz") for name in files}
    preprocessing = preprocess.fingerprint()
    withdrawn = history.withdrawn(recipe, workspace)
    state = read_state(recipe.registered_model, withdrawn)
    tags = {name: tags_of_run(str(files[name].training["run_id"])) for name in files}
    known = {name: next((v for v in state.versions if v.is_of(recipe, files[name])), None) for name in files}
    champion, artefacts = None, {name: it.folder / "model.tflite" for name, it in files.items()}
    with tempfile.TemporaryDirectory() as scratch:
        if state.champion and state.champion.decodes_like(preprocessing):
            if dry:
                folder = fetch(state.champion, Path(scratch))
            else:
                folder = restore.fetch(recipe, state.champion, Path(scratch), workspace)
            champion = _measure(recipe, state.champion, folder, files, workspace, dry)
            artefacts[CHAMPION] = folder / "model.tflite"
        times: dict[str, float] = {}
        if recipe.gate.as_good_and_lighter and len(artefacts) > 1:
            # Recorded latencies are of another time, and maybe of another machine.
            times = dict(zip(artefacts, time_in_turn(list(artefacts.values())), strict=True))
    if champion:
        champion = replace(champion, predictions=_timed(champion.predictions, times.get(CHAMPION)))
    pixels = paths.data_folder(recipe, workspace) / "images.npy"
    return Evidence(
        files=files,
        arrays=arrays,
        predictions={
            name: _timed(
                _predictions(files[name], arrays[name], known[name], withdrawn.get(files[name].sha256)), times.get(name)
            )
            for name in files
        },
        state=state,
        tags=tags,
        champion=champion,
        preprocessing=preprocessing,
        usage=_use(recipe, files, state.champion if champion else None, workspace, dry),
        images=np.load(pixels, mmap_mode="r") if pixels.exists() else None,
    )


def _use(
    recipe: Recipe, files: Mapping[str, CandidateFiles], champion: Version | None, workspace: Path, dry: bool
) -> Usage:
    """Record the comparisons that follow, unless `dry`, and return how the test images were used so far."""
    digest, numbers = _digest(files), {}
    if champion:
        # The champion itself, trained again to the same bytes, has no chance to win.
        artefacts = {name: it.sha256 for name, it in files.items() if it.sha256 != champion.sha256}
        numbers = ledger.number_comparisons(recipe, artefacts, champion.sha256, digest, workspace, dry)
    last = max(ledger.last_comparison(digest, workspace), *numbers.values(), 0)
    return Usage(ledger.count_reads(digest, workspace), numbers, last)


def _predictions(
    files: CandidateFiles, arrays: Mapping[str, np.ndarray], version: Version | None, recorded: str | None
) -> Predictions:
    """Return a candidate's predictions.

    `version` is the one that was registered from the same files, `recorded` the reason on record for a withdrawal of
    the artefact.
    """
    predictions = predictions_of(arrays, files.metrics, files.training.get("preprocessing"), number_of(version))
    withdrawn = recorded or (version.withdrawn if version else None)
    return replace(predictions, facts=replace(predictions.facts, withdrawn=withdrawn))


def check_champion(recipe: Recipe) -> None:
    """Raise JudgingError if the champion cannot be compared on the recipe's images, before anything is trained."""
    champion = read_state(recipe.registered_model).champion
    is_compared = champion and champion.decodes_like(preprocess.fingerprint())
    if champion and is_compared and champion.data_digest != recipe.data.digest:
        with tempfile.TemporaryDirectory() as scratch, suppress(ArtefactsLost, ArtefactError):  # the run restores it
            _check_comparable(recipe, champion, fetch(champion, Path(scratch)))


def _check_comparable(recipe: Recipe, champion: Version, folder: Path) -> None:
    """Raise JudgingError if the champion in `folder` has other classes, or images of another size or form."""
    metadata, data = read_json(folder / "metadata.json"), recipe.data
    differences = []
    if metadata["class_names"] != data.class_names:
        new = [f"+ {name}" for name in data.class_names if name not in metadata["class_names"]]
        changed = new + [f"- {name}" for name in metadata["class_names"] if name not in data.class_names]
        differences.append(f"other classes ({', '.join(changed[:LISTED]) or 'the same in another order'})")
    if (size := metadata.get("image_size", data.image_size)) != data.image_size:
        differences.append(f"images of {size} pixels, not {data.image_size}")
    if (resize := metadata.get("resize", "crop")) != data.resize:
        differences.append(f"images resized by {resize}, not {data.resize}")
    if differences:
        raise JudgingError(
            f"the champion of {champion.name}, version {champion.version}, has {' and '.join(differences)}, so it "
            f"cannot be compared on the images of {recipe.name}; set another registered_model for the recipe in "
            "params.yaml"
        )


def _measure(
    recipe: Recipe, champion: Version, folder: Path, files: Mapping[str, CandidateFiles], workspace: Path, dry: bool
) -> Measured:
    """Return the champion's predictions for the candidates' test images.

    `folder` holds its artefacts. It is evaluated again if it was registered with other data, or with fewer measurements
    than today's.
    """
    digest = _digest(files)
    metadata = read_json(folder / "metadata.json")
    path = folder / "predictions.npz"
    document, arrays = metadata.get("evaluation") or {}, read_arrays(path) if path.exists() else {}
    again = champion.data_digest != digest or not is_complete(arrays, document)
    if again and dry:
        raise JudgingError(
            f"the champion of {champion.name}, version {champion.version}, was not measured on these test images; a "
            f"dry run does not score it: `mobilenet-pipeline run --recipe {recipe.name}` does"
        )
    if again:
        _check_comparable(recipe, champion, folder)
        data = open_dataset(paths.data_folder(recipe, workspace))
        _, validation = split_rows(data, recipe.split)
        ledger.record_read(recipe, f"champion, version {champion.version}", digest, champion.sha256, workspace)
        document, arrays = evaluate(folder / "model.tflite", data, validation, recipe.gate.coverage)
    return Measured(predictions_of(arrays, document, metadata.get("preprocessing"), champion.version), again)


def _digest(files: Mapping[str, CandidateFiles]) -> str:
    """Return the digest of the candidates' data; the gate refuses candidates of different data."""
    return next(iter(files.values())).data_digest


def _timed(predictions: Predictions, milliseconds: float | None) -> Predictions:
    return replace(predictions, facts=replace(predictions.facts, in_turn_ms=milliseconds))
