"""From a version back to where it comes from; everything that has a hash is checked again."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import DatasetError, changed_rows, open_dataset
from mobilenet_pipeline.gate.verdict import GateError, Verdict
from mobilenet_pipeline.registry import identity
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.workspace import history, ledger, paths, provenance, records
from mobilenet_pipeline.workspace.files import read_json
from mobilenet_pipeline.workspace.history import Event, HistoryError
from mobilenet_pipeline.workspace.paths import HERE
from mobilenet_pipeline.workspace.records import RecordError, RecordsAway


@dataclass(frozen=True)
class Link:
    """A step of the trace: its name, a sentence, and whether it holds; None if this machine cannot tell."""

    name: str
    sentence: str
    holds: bool | None


class AnswerError(ValueError):
    """The text is not an answer of the API, or is one of another model."""


def version_in(answer: str, recipe: Recipe, source: str) -> str:
    """Return the number of the version that gave an answer of /predict, from its JSON; `source` is the answer's place.

    Raises AnswerError naming `source` and the remedy.
    """
    remedy = "save what /predict answers: curl -F image=@photo.jpg http://127.0.0.1:3000/predict"
    try:
        document = json.loads(answer)
    except ValueError:
        raise AnswerError(f"{source} is not JSON; {remedy}") from None
    name, number = (
        document.get(key) if isinstance(document, dict) else None for key in ("model_name", "model_version")
    )
    if not isinstance(name, str) or not isinstance(number, str):
        raise AnswerError(f"{source} has no model_name and model_version; {remedy}")
    if name != recipe.registered_model:
        raise AnswerError(
            f"{source} is an answer of {name}, recipe {recipe.name} has {recipe.registered_model}; give that model's "
            "recipe with --recipe"
        )
    return number


def trace(recipe: Recipe, number: str, workspace: Path = HERE) -> list[Link]:
    """Walk from the registered version to its run, commit, data, validation, verdict and history.

    Raises RegistryError if there is no such version, and OtherRegistry if MLflow's store is not the recipe's.
    """
    with suppress(HistoryError):  # the link of the history names the damage
        identity.check(recipe, workspace)
    version = registry.find(recipe.registered_model, number)
    lost = registry.lost_run(version)
    run_tags = registry.tags_of_run(version.run_id)
    tags = run_tags | registry.tags_of_version(version)
    try:
        # The record outlives the registry, in which numbers start again; runs are never the same.
        events = [
            event
            for event in history.read(recipe, workspace, copy=True)
            if event.run == version.run_id or event.withdraws == version.sha256
        ]
        damage = None
    except RecordError as error:
        events, damage = [], str(error)
    return [
        Link("version", f"{number} of {version.name}, {version.candidate} of recipe {version.recipe}", True),
        _artefact(version),
        *_served(recipe, version),
        Link("run", lost or f"{version.run_id} in MLflow", run_tags.get("data_digest") == version.data_digest),
        _commit(version.git_commit, run_tags, workspace),
        _data(recipe, version.data_digest, tags.get("data_version"), workspace),
        _validation(recipe, version.data_digest, workspace),
        Link("verdict", f"lost: {lost}", False)
        if lost
        else _verdict(registry.read_artefact(version, "verdict.json"), version, events),
        _history(recipe, events, damage, version, workspace),
    ]


def _artefact(version: Version) -> Link:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            registry.fetch(version, Path(scratch))
        except ValueError as error:
            return Link("artefact", str(error), False)
    return Link("artefact", f"model.tflite {version.sha256[:12]} and its predictions", True)


def _served(recipe: Recipe, version: Version) -> list[Link]:
    live = bento.live(recipe)
    roles = [role for role, number in (live.versions if live else {}).items() if number == version.version]
    if live is None or not roles:
        return []
    return [Link("served", f"as {roles[0]} by Bento {live.tag}", live.hashes[roles[0]] == version.sha256)]


def _commit(commit: str | None, run_tags: Mapping[str, str], workspace: Path) -> Link:
    if commit is None:
        reason = run_tags.get("git_problem", "no reason was recorded")
        return Link("commit", f"not recorded by the training: {reason}", None)
    try:
        exists = provenance.has_commit(commit, workspace)
    except provenance.GitFailed as error:
        return Link("commit", f"{commit[:12]} cannot be looked up: {error}", None)
    if not exists:
        return Link("commit", f"{commit[:12]} is not in this repository; fetch it", None)
    if run_tags.get("git_dirty") == "true":
        return Link("commit", f"{commit[:12]}, with changes that were not committed", None)
    return Link("commit", commit[:12], True)


def _data(recipe: Recipe, digest: str, data_version: str | None, workspace: Path) -> Link:
    folder = paths.data_folder(recipe, workspace)
    sentence = f"digest {digest[:12]}, DVC version {data_version or 'not recorded'}"
    if not folder.exists():
        stage = f"{paths.dvc_file(recipe.name).as_posix()}:ingest@{recipe.name}"
        return Link("data", f"{sentence}; not in this workspace: dvc pull {stage}, or dvc repro {stage}", None)
    try:
        present, changed = open_dataset(folder).digest, changed_rows(folder)
    except DatasetError as error:
        return Link("data", str(error), False)
    if present != digest:
        return Link("data", f"{sentence}; this workspace has {present[:12]} now", None)
    if changed:
        return Link("data", f"{sentence}; {changed:,} images in {folder} differ from its manifest", False)
    if data_version not in (None, provenance.data_version(recipe.name, workspace)):
        return Link("data", f"{sentence}; dvc.lock names another version of the same images", None)
    return Link("data", sentence, True)


def _validation(recipe: Recipe, digest: str, workspace: Path) -> Link:
    path = paths.report_folder(recipe, workspace) / "validation.json"
    if not path.is_file():
        return Link("validation", f"{path} is not in this workspace", None)
    report = read_json(path)
    if report["data_digest"] != digest:
        return Link("validation", "the last validation in this workspace is of other data", None)
    met = sum(bool(each["success"]) for each in report["expectations"])
    return Link("validation", f"{met} of {len(report['expectations'])} expectations met", bool(report["success"]))


def _verdict(text: str | None, version: Version, events: list[Event]) -> Link:
    if text is None:
        return Link("verdict", "the gate has not judged it", None)
    try:
        verdict = Verdict.from_json(text, "verdict.json")
    except GateError as error:
        return Link("verdict", str(error), False)
    recorded = [event for event in events if event.verdict and event.run == version.run_id]
    digest, expected = hashlib.sha256(text.encode()).hexdigest(), recorded[-1].verdict if recorded else None
    if expected and digest != expected:
        if verdict.judged_at > recorded[-1].at:
            return Link("verdict", f"{verdict.reason} It was judged again since it was promoted.", None)
        return Link("verdict", f"verdict.json was changed: its SHA-256 is {digest}, recorded is {expected}", False)
    return Link("verdict", verdict.reason, verdict.artefacts.get(version.candidate) == version.sha256)


def _history(recipe: Recipe, events: list[Event], damage: str | None, version: Version, workspace: Path) -> Link:
    if damage:
        return Link("history", damage, False)
    words = ["withdrawn" if event.withdraws == version.sha256 else event.what for event in events]
    sentence = "; ".join(f"{word} {event.at} by {event.who}" for word, event in zip(words, events, strict=True))
    partial = _partial(recipe, events, version, workspace)
    return Link("history", "; ".join(filter(None, (sentence or "no events", partial))), None if partial else True)


def _partial(recipe: Recipe, events: list[Event], version: Version, workspace: Path) -> str | None:
    """Return why this workspace may not have the whole record, None if nothing says so."""
    try:
        history.read(recipe, workspace)
        reads = ledger.count_reads(version.data_digest, workspace)
    except (RecordsAway, ValueError) as error:
        return str(error)
    document = registry.read_artefact(version, "verdict.json")
    try:
        judged_after = Verdict.from_json(document, "verdict.json").test_reads if document else 0
    except GateError:  # the link of the verdict says so
        judged_after = 0
    remedy = f"other workspaces have more; share the records ({records.SETTING})"
    if _was_promoted(recipe, version) and not any(event.makes_champion for event in events):
        return f"the registry has a promotion that is not recorded here: {remedy}"
    if reads < judged_after:
        return f"the verdict counted {judged_after} reads of the test images, here are {reads}: {remedy}"
    return None


def _was_promoted(recipe: Recipe, version: Version) -> bool:
    """Return whether the version became champion, if it is not withdrawn; people may decide on what passed the gate."""
    decided = recipe.promotion == "automatic" or version.approval == "approved"
    return version.verdict == "promoted" and decided and not version.withdrawn
