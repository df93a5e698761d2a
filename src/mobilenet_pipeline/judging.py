"""Candidates to versions and verdict: against each other and the champion, or as it was decided before."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenet_pipeline import card, evaluation, gate, history, images, layout, ledger, metrics, provenance, split
from mobilenet_pipeline.checks import Predictions
from mobilenet_pipeline.config import CANDIDATES, Recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.registry import Version


class JudgingError(ValueError):
    """The champion and the candidates cannot be held against each other."""


@dataclass(frozen=True)
class Judgement:
    """A verdict on registered versions; `document` is reports/RECIPE/verdict.json.

    `against` is the champion that the candidates were measured against; `champion` and `challenger` are the versions
    that carry these aliases once the verdict is carried out.
    """

    document: dict[str, Any]
    candidates: dict[str, "Version"]
    against: "Version | None"
    champion: "Version | None"
    challenger: "Version | None"


def judge(recipe: Recipe, workspace: Path = Path(".")) -> Judgement:
    """Register both candidates, hold them against each other and the champion, and write reports/RECIPE/verdict.json.

    A champion that was measured on other data is measured again on the candidates' test images. Raises ValueError
    naming the file, version or limit that makes a judgement impossible.
    """
    from mobilenet_pipeline import registry

    versions = {
        name: registry.register(recipe, name, workspace, _figures(recipe, name, workspace)) for name in CANDIDATES
    }
    against = registry.with_alias(recipe.registered_model, "champion")
    challenger = registry.with_alias(recipe.registered_model, "challenger")
    predictions = {name: _candidate_predictions(recipe, name, version, workspace) for name, version in versions.items()}
    digest = predictions[CANDIDATES[0]].data_digest
    measured_again = False
    champion, preprocessing = None, provenance.preprocessing()
    # A champion that was trained when images were decoded otherwise cannot be served again: there is none to keep.
    if against is not None and against.preprocessing in (None, preprocessing):
        champion, measured_again = _champion_predictions(recipe, against, digest, workspace)
    reads = ledger.count_reads(digest, workspace)
    timings = {}
    if against and champion and recipe.gate.as_good_and_lighter:
        others = [name for name, version in versions.items() if version.version != against.version]
        timings = _timings(recipe, against, others, workspace)
    unservable = number_of(against) if champion is None else None
    verdict = gate.decide(predictions, champion, recipe.gate, preprocessing, reads, timings, unservable)
    winner = versions[verdict.winner] if verdict.promote and verdict.winner else against
    runner_up = _runner_up(verdict, versions, winner, *(_servable(v, preprocessing) for v in (against, challenger)))
    document = verdict.to_dict() | {
        "recipe": recipe.name,
        "registered_model": recipe.registered_model,
        "limits": recipe.gate.model_dump(),
        "versions": {name: version.version for name, version in versions.items()},
        "artefacts": {name: version.sha256 for name, version in versions.items()},
        "preprocessing": preprocessing,
        "against": number_of(against),
        "champion_measured_again": measured_again,
        "waits_for_approval": verdict.promote and recipe.promotion == "manual",
        "leaves": {"champion": number_of(winner), "challenger": number_of(runner_up)},
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, version in versions.items():
        if against is None or version.version != against.version:  # the champion keeps the verdict that made it one
            files = provenance.read_candidate(recipe, name, workspace)
            origin = _origin(version, workspace)
            described = card.card(
                recipe, name, version.version, files.training, files.metrics, files.dataset, document, origin
            )
            beside = _figures_beside(recipe, name, predictions[name], champion, workspace)
            registry.record_verdict(version, document, described, origin, beside)
    # Last: a judgement that was cut short is reached again, one that is on disk is only carried out.
    layout.write_json(layout.verdict_path(recipe, workspace), document)
    return Judgement(document, versions, against, winner, runner_up)


def recall(recipe: Recipe, workspace: Path = Path(".")) -> Judgement | None:
    """The last judgement, if nothing that it rests on has changed; else None.

    It rests on the candidates' artefacts, the data, the limits, and on who was champion: still the one that was
    measured, or already the one that it makes champion.
    """
    from mobilenet_pipeline import registry

    try:
        document = provenance.read_json(layout.verdict_path(recipe, workspace))
        folders = {name: layout.model_folder(recipe, name, workspace) for name in CANDIDATES}
        now = {
            "registered_model": recipe.registered_model,
            "limits": recipe.gate.model_dump(),
            "preprocessing": provenance.preprocessing(),
            "data_digest": provenance.read_json(layout.data_folder(recipe, workspace) / "dataset.json")["digest"],
            "artefacts": {name: provenance.read_json(folders[name] / "export.json")["sha256"] for name in folders},
        }
    except (provenance.ProvenanceError, KeyError):
        return None
    if any(document.get(key) != value for key, value in now.items()):
        return None
    known = {version.version: version for version in registry.versions(recipe.registered_model)}
    candidates = {name: known.get(number) for name, number in document["versions"].items()}
    if {name: version and version.sha256 for name, version in candidates.items()} != document["artefacts"]:
        return None  # another store, or someone deleted a version
    numbers = [document.get("against"), document["leaves"]["champion"], document["leaves"]["challenger"]]
    if any(number is not None and number not in known for number in numbers):
        return None
    if number_of(registry.with_alias(recipe.registered_model, "champion")) not in numbers[:2]:
        return None
    against, champion, challenger = (known[number] if number is not None else None for number in numbers)
    if any(version is not None and version.withdrawn for version in (champion, challenger)):
        return None  # a person has taken it out since
    return Judgement(document, {name: v for name, v in candidates.items() if v}, against, champion, challenger)


def _candidate_predictions(recipe: Recipe, name: str, version: "Version", workspace: Path) -> Predictions:
    files = provenance.read_candidate(recipe, name, workspace)
    preprocessing = files.training.get("preprocessing")
    found = evaluation.load_predictions(files.folder / "predictions.npz", files.metrics, preprocessing, version.version)
    return replace(found, facts=replace(found.facts, withdrawn=version.withdrawn))


def _champion_predictions(
    recipe: Recipe, champion: "Version", digest: str, workspace: Path
) -> tuple[Predictions, bool]:
    """What the champion says about the test images of the data, and whether it was measured anew.

    It is where it was registered with other data, or by a version of this project that measured less.
    """
    from mobilenet_pipeline import registry

    with tempfile.TemporaryDirectory() as scratch:
        folder = registry.fetch(champion, Path(scratch))
        metadata = provenance.read_json(folder / "metadata.json")
        document, preprocessing = metadata.get("evaluation") or {}, metadata.get("preprocessing")
        path = folder / "predictions.npz"
        if champion.data_digest == digest and evaluation.is_complete(path, document):
            return evaluation.load_predictions(path, document, preprocessing, champion.version), False
        if metadata["class_names"] != recipe.data.class_names:
            raise JudgingError(
                f"the champion of {champion.name}, version {champion.version}, knows the classes "
                f"{metadata['class_names']}, recipe {recipe.name} has {recipe.data.class_names}; give the recipe "
                "another registered_model in params.yaml"
            )
        data = images.open_dataset(layout.data_folder(recipe, workspace))
        _, held_out = split.training_rows(data.labels, data.is_test, recipe.split.validation_share, recipe.split.seed)
        ledger.record_read(recipe, f"champion, version {champion.version}", digest, champion.sha256, workspace)
        document, arrays = evaluation.evaluate(folder / "model.tflite", data, held_out)
        return evaluation.predictions_of(arrays, document, preprocessing, champion.version), True


def _timings(
    recipe: Recipe, champion: "Version", names: Sequence[str], workspace: Path
) -> dict[str, tuple[float, float]]:
    """The candidates' artefacts, each timed in turn with the champion's: what was noted of the champion when it was
    evaluated is of another time, and maybe of another machine."""
    from mobilenet_pipeline import registry

    with tempfile.TemporaryDirectory() as scratch:
        theirs = registry.fetch(champion, Path(scratch)) / "model.tflite"
        folders = {name: layout.model_folder(recipe, name, workspace) for name in names}
        return {name: evaluation.time_in_turn(folder / "model.tflite", theirs) for name, folder in folders.items()}


def _runner_up(
    verdict: gate.Verdict,
    versions: Mapping[str, "Version"],
    champion: "Version | None",
    against: "Version | None",
    challenger: "Version | None",
) -> "Version | None":
    """The best version beside the champion on these test images: of this run's eligible candidates, who was
    champion, and who was challenger; a challenger that was measured on others only if there is no one else."""
    ranked = {}
    if challenger:
        same = challenger.data_digest == verdict.data_digest
        ranked[challenger.version] = (challenger.accuracy if same else -1.0, challenger)
    if against and verdict.champion:
        ranked[against.version] = (verdict.champion.accuracy, against)
    for name, standing in verdict.candidates.items():
        if standing.eligible:
            ranked[versions[name].version] = (standing.accuracy, versions[name])
    beside = [entry for number, entry in ranked.items() if champion and number != champion.version]
    return max(beside, key=lambda entry: entry[0], default=(0.0, None))[1]


def _servable(version: "Version | None", preprocessing: str) -> "Version | None":
    """The version, unless a person took it out or the service would decode images otherwise than its training did."""
    if version is None or version.withdrawn or version.preprocessing not in (None, preprocessing):
        return None
    return version


def _origin(version: "Version", workspace: Path) -> dict[str, str | None]:
    """Where the version's past can be found. A run that lacks the data's version gets the present one."""
    from mobilenet_pipeline import registry

    told = registry.tags_of(version)
    return {
        "run": version.run_id,
        "parent_run": told.get("mlflow.parentRunId"),
        "flow_run": told.get("flow_run"),
        "git_commit": version.git_commit,
        "data_version": told.get("data_version") or provenance.data_version(version.recipe, workspace),
        "dvc_lock_sha256": told.get("dvc_lock_sha256"),
        "artefact": version.sha256,
    }


def _figures(recipe: Recipe, candidate: str, workspace: Path) -> dict[str, bytes]:
    from mobilenet_pipeline import figures, verdict_figures

    document = provenance.read_json(layout.metrics_path(recipe, candidate, workspace))
    told = evaluation.read_predictions(layout.model_folder(recipe, candidate, workspace) / "predictions.npz")
    names, matrix = recipe.data.class_names, {candidate: document["confusion_matrix"]}
    drawn = {
        "confusion_matrix.png": figures.confusion_matrices(matrix, names),
        "accuracy_per_class.png": figures.accuracy_per_class(matrix, names),
        "reliability.png": verdict_figures.reliability({candidate: (told["probabilities"], told["labels"])}),
        "corruptions.png": verdict_figures.corruptions({candidate: document["corruptions"]}),
    }
    pixels = layout.data_folder(recipe, workspace) / "images.npy"
    if pixels.exists():
        shown = figures.most_confident_mistakes(told["labels"], told["probabilities"])
        photos = np.load(pixels, mmap_mode="r")[told["rows"][shown]]
        drawn["worst_mistakes.png"] = figures.worst_mistakes(
            photos, told["labels"][shown], told["probabilities"][shown], names
        )
    return drawn


def _figures_beside(
    recipe: Recipe, candidate: str, found: Predictions, champion: Predictions | None, workspace: Path
) -> dict[str, bytes]:
    """What a reviewer sees of a candidate beside the champion that it was held against; nothing without one."""
    from mobilenet_pipeline import figures, verdict_figures

    if champion is None:
        return {}
    names, called = recipe.data.class_names, f"champion, version {champion.version}"
    theirs, ours = (
        metrics.evaluate(each.probabilities, each.labels, names)["confusion_matrix"] for each in (champion, found)
    )
    drawn = {
        "confusion_beside_champion.png": figures.confusion_matrices({called: theirs, candidate: ours}, names),
        "confusion_less_champion.png": verdict_figures.confusion_difference(
            theirs, ours, f"{candidate} less {called}", names
        ),
    }
    changes = [(event.version, event.at[:10], event.accuracy) for event in history.champions(recipe, workspace)]
    return drawn | ({"champions.png": verdict_figures.champions(changes)} if changes else {})


def number_of(version: "Version | None") -> str | None:
    """The version's number, where there is one."""
    return version.version if version else None
