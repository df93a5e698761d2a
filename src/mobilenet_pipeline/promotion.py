"""Candidates to verdict, verdict to Bento and aliases. Every step can be repeated, so a run that died is completed."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenet_pipeline import evaluation, gate, layout, provenance
from mobilenet_pipeline.config import CANDIDATES, Recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.registry import Version


class PromotionError(ValueError):
    """The verdict and what is served do not fit together."""


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
    predictions = {
        name: evaluation.load_predictions(
            layout.model_folder(recipe, name, workspace) / "predictions.npz", version.version
        )
        for name, version in versions.items()
    }
    champion = None if against is None else _champion_predictions(recipe, against, predictions, workspace)
    verdict = gate.decide(predictions, champion, recipe.gate)
    winner = versions[verdict.winner] if verdict.promote and verdict.winner else against
    runner_up = _runner_up(verdict, versions, winner, [against, challenger])
    document = verdict.to_dict() | {
        "recipe": recipe.name,
        "registered_model": recipe.registered_model,
        "limits": recipe.gate.model_dump(),
        "versions": {name: version.version for name, version in versions.items()},
        "artefacts": {name: version.sha256 for name, version in versions.items()},
        "champion_measured_again": against is not None and against.data_digest != verdict.data_digest,
        "leaves": {"champion": _number(winner), "challenger": _number(runner_up)},
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    layout.write_json(_verdict_path(recipe, workspace), document)
    for version in versions.values():
        if against is None or version.version != against.version:  # the champion keeps the verdict that made it one
            registry.record_verdict(version, document)
    return Judgement(document, versions, against, winner, runner_up)


def promote(recipe: Recipe, judgement: Judgement) -> str | None:
    """Carry the verdict out: the Bento first, then the challenger's alias, the champion's last; gives the Bento's tag.

    Nothing is built where the newest Bento holds this champion and challenger already. None where there is nothing to
    serve: no champion, and no candidate above the floor. Raises PromotionError where another run has changed the
    champion since the verdict, and what `packaging.check` raises where the Bento does not answer: the aliases stay.
    """
    from mobilenet_pipeline import packaging, registry

    name, champion, challenger = recipe.registered_model, judgement.champion, judgement.challenger
    if champion is None:
        return None
    _check_champion(name, judgement)
    wanted = champion.version, _number(challenger)
    settled = _aliases(name) == wanted
    tag = _bento_of(recipe, wanted)
    if tag is None:
        with tempfile.TemporaryDirectory() as scratch:
            best = registry.fetch(champion, Path(scratch) / champion.version)
            second = registry.fetch(challenger, Path(scratch) / challenger.version) if challenger else None
            tag = packaging.package(recipe, best, second)
        _check_bento(tag)
    elif not settled:  # the run that built it died before it could look
        _check_bento(tag)
    if not settled:
        registry.set_alias(name, "challenger", wanted[1])
        registry.set_alias(name, "champion", wanted[0])
    return tag


def already_judged(recipe: Recipe, workspace: Path = Path(".")) -> dict[str, Any] | None:
    """The last verdict's document, if nothing that it rests on has changed and it was carried out; else None.

    It rests on the candidates' artefacts, the data and the limits; it was carried out if the aliases are where it
    left them and the newest Bento holds those versions.
    """
    from mobilenet_pipeline import registry

    try:
        document = provenance.read_json(_verdict_path(recipe, workspace))
        folders = {name: layout.model_folder(recipe, name, workspace) for name in CANDIDATES}
        now = {
            "registered_model": recipe.registered_model,
            "limits": recipe.gate.model_dump(),
            "data_digest": provenance.read_json(layout.data_folder(recipe, workspace) / "dataset.json")["digest"],
            "artefacts": {name: provenance.read_json(folders[name] / "export.json")["sha256"] for name in folders},
        }
    except (provenance.ProvenanceError, KeyError):
        return None
    if any(document.get(key) != value for key, value in now.items()):
        return None
    left = document["leaves"]["champion"], document["leaves"]["challenger"]
    known = {version.version: version.sha256 for version in registry.versions(recipe.registered_model)}
    if {known.get(document["versions"][name]) for name in CANDIDATES} != set(document["artefacts"].values()):
        return None
    if _aliases(recipe.registered_model) != left:
        return None
    return document if left[0] is None or _bento_of(recipe, left) is not None else None


def consistent(recipe: Recipe) -> str | None:
    """None where the newest Bento holds the champion, else a sentence that says how the two differ."""
    from mobilenet_pipeline import packaging

    name = recipe.registered_model
    champion = _aliases(name)[0]
    bento = packaging.latest(recipe)
    remedy = f"`mobilenet-pipeline run --recipe {recipe.name}` puts this right"
    if champion is None and bento is None:
        return None
    if bento is None:
        return f"Version {champion} of {name} is champion, but there is no Bento with it; {remedy}."
    if champion is None:
        return f"Bento {bento.tag} serves version {bento.champion}, but {name} has no champion; {remedy}."
    if bento.champion != champion:
        served = f"Bento {bento.tag} serves version {bento.champion}"
        return f"{served}, but version {champion} of {name} is champion; {remedy}."
    return None


def status(recipe: Recipe, workspace: Path = Path(".")) -> dict[str, Any]:
    """What is served and why: champion, challenger (versions), bento (tag), verdict (document), drift (sentence)."""
    from mobilenet_pipeline import packaging, registry

    bento = packaging.latest(recipe)
    path = _verdict_path(recipe, workspace)
    return {
        "champion": registry.with_alias(recipe.registered_model, "champion"),
        "challenger": registry.with_alias(recipe.registered_model, "challenger"),
        "bento": bento and bento.tag,
        "verdict": provenance.read_json(path) if path.exists() else None,
        "drift": consistent(recipe),
    }


def _champion_predictions(
    recipe: Recipe, champion: "Version", candidates: Mapping[str, gate.Predictions], workspace: Path
) -> gate.Predictions:
    """What the champion says about the candidates' test images: as registered, or worked out anew on other data."""
    from mobilenet_pipeline import registry

    digest = candidates[CANDIDATES[0]].data_digest
    with tempfile.TemporaryDirectory() as scratch:
        folder = registry.fetch(champion, Path(scratch))
        if champion.data_digest == digest:
            return evaluation.load_predictions(folder / "predictions.npz", champion.version)
        classes = provenance.read_json(folder / "metadata.json")["class_names"]
        if classes != recipe.data.class_names:
            raise PromotionError(
                f"the champion of {champion.name}, version {champion.version}, knows the classes {classes}, recipe "
                f"{recipe.name} has {recipe.data.class_names}; give the recipe another registered_model in params.yaml"
            )
        arrays = evaluation.read_predictions(layout.model_folder(recipe, CANDIDATES[0], workspace) / "predictions.npz")
        images = np.load(layout.data_folder(recipe, workspace) / "images.npy", mmap_mode="r")
        probabilities = evaluation.predict(folder / "model.tflite", images[arrays["rows"]])
    return gate.Predictions(probabilities, arrays["labels"], digest, champion.version)


def _runner_up(
    verdict: gate.Verdict,
    versions: Mapping[str, "Version"],
    champion: "Version | None",
    others: list["Version | None"],
) -> "Version | None":
    """The best version beside the champion: this run's candidates above the floor, then who was served before."""
    passing = [name for name, standing in verdict.candidates.items() if standing.passes_floor]
    passing.sort(key=lambda name: (name != verdict.winner, -verdict.candidates[name].accuracy))
    ranked = [*(versions[name] for name in passing), *(version for version in others if version)]
    return next((version for version in ranked if champion and version.version != champion.version), None)


def _check_champion(name: str, judgement: Judgement) -> None:
    found = _aliases(name)[0]
    expected = [_number(judgement.against), _number(judgement.champion)]
    if found not in expected:
        measured = f"against version {expected[0]}" if expected[0] else "without a champion"
        raise PromotionError(
            f"version {found} of {name} has become champion in the meantime, the verdict was reached {measured}; "
            "run the flow again"
        )


def _check_bento(tag: str) -> None:
    """Start it once. One that does not answer is taken away, or it would be the newest and served."""
    from mobilenet_pipeline import packaging

    try:
        packaging.check(tag)
    except (Exception, KeyboardInterrupt):
        packaging.discard(tag)
        raise


def _aliases(name: str) -> tuple[str | None, str | None]:
    from mobilenet_pipeline import registry

    champion, challenger = (registry.with_alias(name, alias) for alias in ("champion", "challenger"))
    return _number(champion), _number(challenger)


def _number(version: "Version | None") -> str | None:
    return version.version if version else None


def _bento_of(recipe: Recipe, wanted: tuple[str | None, str | None]) -> str | None:
    """The newest Bento's tag, if it holds these versions as champion and challenger."""
    from mobilenet_pipeline import packaging

    bento = packaging.latest(recipe)
    return bento.tag if bento and (bento.champion, bento.challenger) == wanted else None


def _figures(recipe: Recipe, candidate: str, workspace: Path) -> dict[str, bytes]:
    from mobilenet_pipeline import figures

    path = layout.metrics_path(recipe, candidate, workspace)
    matrix = {candidate: provenance.read_json(path)["confusion_matrix"]}
    return {
        "confusion_matrix.png": figures.confusion_matrices(matrix, recipe.data.class_names),
        "accuracy_per_class.png": figures.accuracy_per_class(matrix, recipe.data.class_names),
    }


def _verdict_path(recipe: Recipe, workspace: Path) -> Path:
    return layout.report_folder(recipe, workspace) / "verdict.json"
