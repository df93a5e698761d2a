"""Candidates to versions and verdict: collect the evidence, decide, record; or recall the last verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.evaluation.reference import describe
from mobilenet_pipeline.gate.card import write_card
from mobilenet_pipeline.gate.verdict import Aliases, Decision, GateError, Verdict, decide
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.trust import answering
from mobilenet_pipeline.registry import aliases, identity
from mobilenet_pipeline.registry.aliases import State
from mobilenet_pipeline.registry.documents import limits_of
from mobilenet_pipeline.registry.register import record_verdict, register
from mobilenet_pipeline.registry.versions import Version, announce, is_stored, number_of, set_tag
from mobilenet_pipeline.release.evidence import Evidence, collect
from mobilenet_pipeline.reports.candidate_figures import draw_beside_champion, draw_candidate
from mobilenet_pipeline.workspace import history, paths, provenance
from mobilenet_pipeline.workspace.files import WorkspaceError, existing, read_json, write_text
from mobilenet_pipeline.workspace.paths import HERE


@dataclass(frozen=True)
class Judgement:
    """A verdict on registered versions.

    `against` is the champion that the candidates were compared with; `champion` and `challenger` are the versions with
    these aliases once the verdict is applied; `state` is the registry as it was read.
    """

    verdict: Verdict
    against: Version | None
    champion: Version | None
    challenger: Version | None
    state: State


def judge(recipe: Recipe, workspace: Path = HERE) -> Judgement:
    """Compare the candidates with each other and the champion, register them, and write reports/RECIPE/verdict.json.

    Raises ValueError naming the file, version or limit that makes a verdict impossible; nothing is recorded then.
    """
    evidence = collect(recipe, workspace)
    return record(recipe, evidence, _decide(evidence, recipe), workspace)


def preview(recipe: Recipe, workspace: Path = HERE) -> Decision:
    """Return the decision that `judge` would reach now. Nothing is registered or recorded.

    The test images are not scored: the predictions are those of the stage evaluate, which has recorded its read. The
    number of each comparison, and with it the level, is that which `judge` would give it. Raises ValueError like
    `judge`, and if the champion would have to be scored first.
    """
    identity.check(recipe, workspace)
    return _decide(collect(recipe, workspace, dry=True), recipe)


def _decide(evidence: Evidence, recipe: Recipe) -> Decision:
    unservable = number_of(evidence.state.champion) if evidence.champion is None else None
    return decide(
        evidence.predictions,
        evidence.champion.predictions if evidence.champion else None,
        recipe.gate,
        evidence.preprocessing,
        evidence.usage,
        unservable,
    )


def record(recipe: Recipe, evidence: Evidence, decision: Decision, workspace: Path = HERE) -> Judgement:
    """Register the candidates, and write the verdict to their versions and to reports/RECIPE/verdict.json."""
    against, classes = evidence.state.champion, recipe.data.class_names
    champions = [(event.version, event.at[:10], event.accuracy) for event in history.champions(recipe, workspace)]
    versions = {
        name: register(
            recipe,
            files,
            partial(draw_candidate, files, evidence.arrays[name], evidence.images, classes),
            partial(_reference, evidence, name, classes),
        )
        for name, files in evidence.files.items()
    }
    champion = versions[decision.winner] if decision.promote and decision.winner else against
    challenger = _runner_up(decision, evidence, versions, champion)
    verdict = Verdict(
        **dict(decision),
        recipe=recipe.name,
        registered_model=recipe.registered_model,
        limits=recipe.gate,
        versions={name: version.version for name, version in versions.items()},
        artefacts={name: version.sha256 for name, version in versions.items()},
        preprocessing=evidence.preprocessing,
        against=number_of(against),
        champion_measured_again=bool(evidence.champion and evidence.champion.again),
        waits_for_approval=decision.promote and recipe.promotion == "manual",
        leaves=Aliases(number_of(champion), number_of(challenger)),
        judged_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for name, version in versions.items():
        if against and version.version == against.version:
            continue  # the champion keeps the verdict that promoted it
        origin = _origin(version, evidence.tags[name], workspace)
        card = write_card(recipe, evidence.files[name], version.version, verdict, origin)
        beside = {}
        if evidence.champion:
            beside = draw_beside_champion(
                name, evidence.predictions[name], evidence.champion.predictions, classes, champions
            )
        record_verdict(version, verdict.to_json(), card, verdict.promotes(name), origin, beside)
        withdrawn = evidence.predictions[name].facts.withdrawn
        if withdrawn and not version.withdrawn:  # the registry has forgotten it
            set_tag(version, "withdrawn", withdrawn)
            announce(version, f"Withdrawn: {withdrawn}")
    # Last: a verdict that was cut short is reached again; one that is on the disk only needs to be applied.
    write_text(paths.verdict_path(recipe, workspace), verdict.to_json())
    return Judgement(verdict, against, champion, challenger, evidence.state)


def recall(recipe: Recipe, workspace: Path = HERE, state: State | None = None) -> Judgement | None:
    """Return the last verdict's judgement, None if something that it rests on has changed.

    It rests on the candidates' artefacts and what their evaluations found, the data, the limits, and the champion:
    still the one that was compared, or already the one that the verdict promotes. `state` is the registered model, if
    it has been read already.
    """
    try:
        verdict = read_verdict(recipe, workspace)
        folders = {name: paths.model_folder(recipe, name, workspace) for name in recipe.artefacts}
        digest = read_json(paths.data_folder(recipe, workspace) / "dataset.json")["digest"]
        artefacts = {name: read_json(folder / "export.json")["sha256"] for name, folder in folders.items()}
        found = {name: read_json(paths.metrics_path(recipe, name, workspace)) for name in folders}
    except (WorkspaceError, GateError, KeyError):
        return None
    if verdict.budget_left is None:
        return None  # it is from before comparisons had a budget
    if (verdict.registered_model, verdict.limits, verdict.preprocessing, verdict.data_digest, verdict.artefacts) != (
        recipe.registered_model,
        recipe.gate,
        preprocess.fingerprint(),
        digest,
        artefacts,
    ):
        return None
    if state is None:
        identity.check(recipe, workspace)
        state = aliases.read_state(recipe.registered_model, history.withdrawn(recipe, workspace))
    known = {version.version: version for version in state.versions}
    judged = {name: known.get(number) for name, number in verdict.versions.items()}
    if {name: version and version.sha256 for name, version in judged.items()} != artefacts:
        return None  # another store, or somebody deleted a version
    if not all(each and each.answers_like(answering(limits_of(recipe, found[name]))) for name, each in judged.items()):
        return None  # evaluated again since, with other limits
    numbers = (verdict.against, verdict.leaves.champion, verdict.leaves.challenger)
    against, champion, challenger = (known.get(number) if number else None for number in numbers)
    if tuple(map(number_of, (against, champion, challenger))) != numbers:
        return None
    if number_of(state.champion) not in numbers[:2]:
        return None
    if any(version is not None and version.withdrawn for version in (champion, challenger)):
        return None  # a person has withdrawn it since
    return Judgement(verdict, against, champion, challenger, state)


def read_verdict(recipe: Recipe, workspace: Path = HERE) -> Verdict:
    """Read the last verdict. Raises WorkspaceError if there is none, GateError if it is damaged."""
    path = existing(paths.verdict_path(recipe, workspace))
    return Verdict.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _reference(evidence: Evidence, name: str, class_names: list[str]) -> bytes | None:
    """Return the candidate's reference for the monitoring, None without the images."""
    if evidence.images is None:
        return None
    arrays = evidence.arrays[name]
    return describe(evidence.images, arrays["rows"], arrays["probabilities"], class_names).to_bytes()


def _runner_up(
    decision: Decision, evidence: Evidence, versions: Mapping[str, Version], champion: Version | None
) -> Version | None:
    """Return the best version beside the champion on these test images.

    The choice is among the eligible candidates, the former champion and the former challenger. A challenger that was
    measured on other images counts only if there is nobody else. One whose artefact is lost does not count.
    """
    ranked = {}
    former, challenger = (
        version if version and version.decodes_like(evidence.preprocessing) and not version.withdrawn else None
        for version in (evidence.state.champion, evidence.state.challenger)
    )
    if challenger and is_stored(challenger):
        same = challenger.data_digest == decision.data_digest
        ranked[challenger.version] = (challenger.accuracy if same else -1.0, challenger)
    if former and decision.champion:
        ranked[former.version] = (decision.champion.accuracy, former)
    for name, standing in decision.candidates.items():
        if standing.eligible:
            ranked[versions[name].version] = (standing.accuracy, versions[name])
    beside = [entry for number, entry in ranked.items() if champion and number != champion.version]
    return max(beside, key=lambda entry: entry[0], default=(0.0, None))[1]


def _origin(version: Version, tags: Mapping[str, str], workspace: Path) -> dict[str, str | None]:
    """Return where the version's past can be found. A run without the data's version gets the present one."""
    return {
        "run": version.run_id,
        "parent_run": tags.get("mlflow.parentRunId"),
        "flow_run": tags.get("flow_run"),
        "git_commit": version.git_commit,
        "data_version": tags.get("data_version") or provenance.data_version(version.recipe, workspace),
        "dvc_lock_sha256": tags.get("dvc_lock_sha256"),
        "artefact": version.sha256,
    }
