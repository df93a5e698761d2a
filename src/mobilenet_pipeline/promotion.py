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
    from mobilenet_pipeline.packaging import Bento
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
    runner_up = _runner_up(verdict, versions, winner, against, challenger)
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
    for version in versions.values():
        if against is None or version.version != against.version:  # the champion keeps the verdict that made it one
            registry.record_verdict(version, document)
    # Last: a judgement that was cut short is reached again, one that is on disk is only carried out.
    layout.write_json(_verdict_path(recipe, workspace), document)
    return Judgement(document, versions, against, winner, runner_up)


def promote(recipe: Recipe, judgement: Judgement) -> str | None:
    """Carry the verdict out: build and try the Bento, then move the challenger's alias, the champion's, and go live.

    Gives the Bento's tag; None where there is nothing to serve: no champion, and no candidate above the floor. Nothing
    is built where it is done already. Raises PromotionError where another run has changed the champion since the
    verdict, and what `packaging.check` raises where the Bento does not answer: what is served stays.
    """
    from mobilenet_pipeline import packaging, registry

    name, champion, challenger = recipe.registered_model, judgement.champion, judgement.challenger
    if champion is None:
        return None
    _check_champion(name, judgement)
    live = packaging.live(recipe)
    if live and carried_out(recipe, judgement):
        return live.tag
    with tempfile.TemporaryDirectory() as scratch:
        best = registry.fetch(champion, Path(scratch) / champion.version)
        second = registry.fetch(challenger, Path(scratch) / challenger.version) if challenger else None
        tag = packaging.package(recipe, best, second)
    try:
        packaging.check(tag)
    except BaseException:  # an interrupt too
        if live is None or live.tag != tag:
            packaging.discard(tag)
        raise
    registry.set_alias(name, "challenger", _number(challenger))
    registry.set_alias(name, "champion", champion.version)
    packaging.put_live(tag)
    return tag


def recall(recipe: Recipe, workspace: Path = Path(".")) -> Judgement | None:
    """The last judgement, if nothing that it rests on has changed; else None.

    It rests on the candidates' artefacts, the data, the limits, and on who was champion: still the one that was
    measured, or already the one that it makes champion.
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
    known = {version.version: version for version in registry.versions(recipe.registered_model)}
    candidates = {name: known.get(number) for name, number in document["versions"].items()}
    if {name: version and version.sha256 for name, version in candidates.items()} != document["artefacts"]:
        return None  # another store, or someone deleted a version
    measured = document["champion"]["version"] if document["champion"] else None
    numbers = [measured, document["leaves"]["champion"], document["leaves"]["challenger"]]
    if any(number is not None and number not in known for number in numbers):
        return None
    if _aliases(recipe.registered_model)[0] not in numbers[:2]:
        return None
    against, champion, challenger = (known[number] if number is not None else None for number in numbers)
    return Judgement(document, {name: v for name, v in candidates.items() if v}, against, champion, challenger)


def carried_out(recipe: Recipe, judgement: Judgement) -> bool:
    """Whether the aliases are where the judgement puts them, and the live Bento holds those versions."""
    from mobilenet_pipeline import packaging

    champion, challenger = judgement.champion, judgement.challenger
    if champion is None:
        return True
    live = packaging.live(recipe)
    settled = _aliases(recipe.registered_model) == (champion.version, _number(challenger))
    return settled and live is not None and _serves(live, champion, challenger)


def consistent(recipe: Recipe) -> str | None:
    """None where the live Bento holds champion and challenger, else a sentence that says how they differ."""
    from mobilenet_pipeline import packaging, registry

    name = recipe.registered_model
    champion, challenger = (registry.with_alias(name, alias) for alias in ("champion", "challenger"))
    live = packaging.live(recipe)
    remedy = f"`mobilenet-pipeline run --recipe {recipe.name}` puts this right"
    if live is None:
        lacking = f"Version {_number(champion)} of {name} is champion, but no Bento with it is served; {remedy}."
        return lacking if champion else None
    if champion and _serves(live, champion, challenger):
        return None
    for role, version in {"champion": champion, "challenger": challenger}.items():
        if live.versions[role] != _number(version):
            served = f"Bento {live.tag} serves {_called(live.versions[role])} as {role}"
            return f"{served}, but in the registry {_called(_number(version))} of {name} is {role}; {remedy}."
    return f"Bento {live.tag} was built of other artefacts or an earlier version of the service's code; {remedy}."


def status(recipe: Recipe, workspace: Path = Path(".")) -> dict[str, Any]:
    """What is served and why: champion, challenger (versions), bento (tag), verdict (document), drift (sentence)."""
    from mobilenet_pipeline import packaging, registry

    bento = packaging.live(recipe)
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
    against: "Version | None",
    challenger: "Version | None",
) -> "Version | None":
    """The best version beside the champion on these test images: of this run's candidates above the floor, who was
    champion, and who was challenger; a challenger that was measured on others only if there is no one else."""
    ranked = {}
    if challenger:
        same = challenger.data_digest == verdict.data_digest
        ranked[challenger.version] = (challenger.accuracy if same else -1.0, challenger)
    if against and verdict.champion:
        ranked[against.version] = (verdict.champion.accuracy, against)
    for name, standing in verdict.candidates.items():
        if standing.passes_floor:
            ranked[versions[name].version] = (standing.accuracy, versions[name])
    beside = [entry for number, entry in ranked.items() if champion and number != champion.version]
    return max(beside, key=lambda entry: entry[0], default=(0.0, None))[1]


def _check_champion(name: str, judgement: Judgement) -> None:
    found = _aliases(name)[0]
    expected = [_number(judgement.against), _number(judgement.champion)]
    if found not in expected:
        measured = f"against version {expected[0]}" if expected[0] else "without a champion"
        raise PromotionError(
            f"version {found} of {name} has become champion in the meantime, the verdict was reached {measured}; "
            "run the flow again"
        )


def _aliases(name: str) -> tuple[str | None, str | None]:
    from mobilenet_pipeline import registry

    champion, challenger = (registry.with_alias(name, alias) for alias in ("champion", "challenger"))
    return _number(champion), _number(challenger)


def _called(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _number(version: "Version | None") -> str | None:
    return version.version if version else None


def _serves(bento: "Bento", champion: "Version", challenger: "Version | None") -> bool:
    """Whether the Bento has today's code and these artefacts: numbers alone start again in another store."""
    roles = {"champion": champion, "challenger": challenger}
    versions = {role: _number(version) for role, version in roles.items()}
    hashes = {role: version.sha256 if version else None for role, version in roles.items()}
    return bento.is_current and (bento.versions, bento.hashes) == (versions, hashes)


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
