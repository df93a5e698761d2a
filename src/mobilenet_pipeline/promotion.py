"""Candidates to verdict, verdict to Bento and aliases. Every step can be repeated, so a run that died is completed."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet_pipeline import card, evaluation, gate, history, images, layout, ledger, provenance, split
from mobilenet_pipeline.checks import Predictions
from mobilenet_pipeline.config import CANDIDATES, Recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.packaging import Bento
    from mobilenet_pipeline.registry import Version


class PromotionError(ValueError):
    """The verdict and what is served do not fit together."""


class ChampionChanged(PromotionError):
    """Another run has made another version champion since the verdict."""


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
    champion = None
    if against is not None:
        champion, measured_again = _champion_predictions(recipe, against, digest, workspace)
    reads = ledger.count_reads(recipe, digest, workspace)
    verdict = gate.decide(predictions, champion, recipe.gate, provenance.preprocessing(), reads)
    winner = versions[verdict.winner] if verdict.promote and verdict.winner else against
    runner_up = _runner_up(verdict, versions, winner, against, challenger)
    document = verdict.to_dict() | {
        "recipe": recipe.name,
        "registered_model": recipe.registered_model,
        "limits": recipe.gate.model_dump(),
        "versions": {name: version.version for name, version in versions.items()},
        "artefacts": {name: version.sha256 for name, version in versions.items()},
        "champion_measured_again": measured_again,
        "leaves": {"champion": _number(winner), "challenger": _number(runner_up)},
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, version in versions.items():
        if against is None or version.version != against.version:  # the champion keeps the verdict that made it one
            files = provenance.read_candidate(recipe, name, workspace)
            origin = _origin(version, files.training, workspace)
            described = card.card(
                recipe, name, version.version, files.training, files.metrics, files.dataset, document, origin
            )
            registry.record_verdict(version, document, described, origin)
    # Last: a judgement that was cut short is reached again, one that is on disk is only carried out.
    layout.write_json(_verdict_path(recipe, workspace), document)
    return Judgement(document, versions, against, winner, runner_up)


def waits(recipe: Recipe, judgement: Judgement) -> bool:
    """Whether the verdict would change the champion, and a person has yet to say so."""
    changes = (
        bool(judgement.document["promote"])
        and _aliases(recipe.registered_model)[0] != judgement.document["leaves"]["champion"]
    )
    approved = judgement.champion is not None and judgement.champion.approval == "approved"
    return recipe.promotion == "manual" and changes and not approved


def promote(recipe: Recipe, judgement: Judgement, workspace: Path = Path(".")) -> str | None:
    """Carry the verdict out: install its champion and challenger, and put it on record where the champion is new.

    Gives the Bento's tag; None where there is nothing to serve: no champion, and no eligible candidate. Nothing is
    built where it is done already. Raises ChampionChanged where another run has changed the champion since the verdict,
    and what `install` raises: what is served stays.
    """
    champion = judgement.champion
    if champion is None:
        return None
    _check_champion(recipe.registered_model, judgement)
    tag = install(recipe, champion, judgement.challenger)
    settle(
        recipe,
        "promoted",
        champion,
        str(judgement.document["reason"]),
        _number(judgement.against),
        "the gate",
        workspace,
    )
    return tag


def install(recipe: Recipe, champion: "Version", challenger: "Version | None") -> str:
    """Serve these versions: build a Bento and try it, then move the aliases, the champion's last, and go live.

    Gives the Bento's tag. Nothing is built where they are served already. Raises what `packaging.check` raises where
    the Bento does not answer: what is served stays.
    """
    from mobilenet_pipeline import packaging, registry

    live = packaging.live(recipe)
    if live and _settled(recipe, champion, challenger):
        return live.tag
    with tempfile.TemporaryDirectory() as scratch:
        best = registry.fetch(champion, Path(scratch) / champion.version)
        second = registry.fetch(challenger, Path(scratch) / challenger.version) if challenger else None
        tag = packaging.package(recipe, best, second)
    try:
        packaging.check(tag, recipe.gate.milliseconds)
    except BaseException:  # an interrupt too
        if live is None or live.tag != tag:
            packaging.discard(tag)
        raise
    name = recipe.registered_model
    former = registry.with_alias(name, "champion")
    registry.set_alias(name, "challenger", _number(challenger))
    if former and former.version != champion.version:
        registry.set_alias(name, "previous", former.version)
    registry.set_alias(name, "champion", champion.version)
    packaging.put_live(tag)
    return tag


def settle(
    recipe: Recipe,
    what: history.What,
    champion: "Version",
    why: str,
    before: str | None,
    who: str,
    workspace: Path = Path("."),
) -> None:
    """Put the change of champion on record, unless it is there: whoever comes after one that was killed does it."""
    if not on_record(recipe, champion, workspace):
        number, run, accuracy = champion.version, champion.run_id, champion.accuracy
        history.append(recipe, what, number, why, before, number, run, accuracy, who, workspace)


def on_record(recipe: Recipe, champion: "Version", workspace: Path = Path(".")) -> bool:
    """Whether the last change on record made this version champion. Of this store: in another, numbers start again."""
    changes = history.champions(recipe, workspace)
    return bool(changes) and (changes[-1].version, changes[-1].run) == (champion.version, champion.run_id)


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
    if any(version is not None and version.withdrawn for version in (champion, challenger)):
        return None  # a person has taken it out since
    return Judgement(document, {name: v for name, v in candidates.items() if v}, against, champion, challenger)


def carried_out(recipe: Recipe, judgement: Judgement, workspace: Path = Path(".")) -> bool:
    """Whether the judgement's champion and challenger are served, and on record."""
    champion = judgement.champion
    if champion is None:
        return True
    return _settled(recipe, champion, judgement.challenger) and on_record(recipe, champion, workspace)


def _settled(recipe: Recipe, champion: "Version", challenger: "Version | None") -> bool:
    """Whether the aliases are on these versions, and the live Bento holds them."""
    from mobilenet_pipeline import packaging

    live = packaging.live(recipe)
    aliases = _aliases(recipe.registered_model) == (champion.version, _number(challenger))
    return aliases and live is not None and _serves(live, champion, challenger)


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
        if champion.data_digest == digest and "corruptions" in document:
            path = folder / "predictions.npz"
            return evaluation.load_predictions(path, document, preprocessing, champion.version), False
        if metadata["class_names"] != recipe.data.class_names:
            raise PromotionError(
                f"the champion of {champion.name}, version {champion.version}, knows the classes "
                f"{metadata['class_names']}, recipe {recipe.name} has {recipe.data.class_names}; give the recipe "
                "another registered_model in params.yaml"
            )
        data = images.open_dataset(layout.data_folder(recipe, workspace))
        _, held_out = split.training_rows(data.labels, data.is_test, recipe.split.validation_share, recipe.split.seed)
        ledger.record_read(recipe, f"champion, version {champion.version}", digest, champion.sha256, workspace)
        document, arrays = evaluation.evaluate(folder / "model.tflite", data, held_out)
        return evaluation.predictions_of(arrays, document, preprocessing, champion.version), True


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
    if challenger and not challenger.withdrawn:
        same = challenger.data_digest == verdict.data_digest
        ranked[challenger.version] = (challenger.accuracy if same else -1.0, challenger)
    if against and verdict.champion and not against.withdrawn:
        ranked[against.version] = (verdict.champion.accuracy, against)
    for name, standing in verdict.candidates.items():
        if standing.eligible:
            ranked[versions[name].version] = (standing.accuracy, versions[name])
    beside = [entry for number, entry in ranked.items() if champion and number != champion.version]
    return max(beside, key=lambda entry: entry[0], default=(0.0, None))[1]


def _check_champion(name: str, judgement: Judgement) -> None:
    found = _aliases(name)[0]
    expected = [_number(judgement.against), _number(judgement.champion)]
    if found not in expected:
        measured = f"against version {expected[0]}" if expected[0] else "without a champion"
        raise ChampionChanged(
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


def _origin(version: "Version", training: Mapping[str, Any], workspace: Path) -> dict[str, str | None]:
    """Where the version's past can be found."""
    here = provenance.origin(version.recipe, workspace=workspace)
    return {
        "run": version.run_id,
        "flow_run": training.get("flow_run") or here.get("flow_run"),
        "git_commit": version.git_commit,
        "data_version": here.get("data_version"),
        "dvc_lock_sha256": here.get("dvc_lock_sha256"),
        "artefact": version.sha256,
    }


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
