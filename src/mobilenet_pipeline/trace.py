"""From a version back to where it comes from; what has a hash on the way is checked again."""

import hashlib
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet_pipeline import history, images, layout, provenance
from mobilenet_pipeline.config import Recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.registry import Version

HERE = Path(".")


@dataclass(frozen=True)
class Link:
    """A step of the way: its name, what was found, and whether it holds; None where this machine cannot say."""

    name: str
    found: str
    holds: bool | None


class AnswerError(ValueError):
    """What should be an answer of the API is none, or of another model."""


def version_in(answer: str, recipe: Recipe, source: str) -> str:
    """The number of the version that gave an answer of /predict, from its JSON; `source` is where that was read.

    Raises AnswerError naming `source` and the remedy.
    """
    remedy = "save what /predict answers: curl -F image=@photo.jpg http://127.0.0.1:3000/predict"
    try:
        told = json.loads(answer)
    except ValueError:
        raise AnswerError(f"{source} is not JSON; {remedy}") from None
    name, number = (told.get(key) if isinstance(told, dict) else None for key in ("model_name", "model_version"))
    if not isinstance(name, str) or not isinstance(number, str):
        raise AnswerError(f"{source} has no model_name and model_version; {remedy}")
    if name != recipe.registered_model:
        raise AnswerError(
            f"{source} is of {name}, recipe {recipe.name} has {recipe.registered_model}; give the recipe of that model "
            "with --recipe"
        )
    return number


def trace(recipe: Recipe, number: str, workspace: Path = HERE) -> list[Link]:
    """Walk from the registered version to run, commit, data, validation and verdict.

    Raises RegistryError for a version that there is not.
    """
    from mobilenet_pipeline import packaging, registry

    version = registry.find(recipe.registered_model, number)
    tags, of_run = registry.tags_of(version), registry.tags_of_run(version)
    links = [Link("version", f"{number} of {version.name}, {version.candidate} of recipe {version.recipe}", True)]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            registry.fetch(version, Path(scratch))
            links.append(Link("artefact", f"model.tflite {version.sha256[:12]} and its predictions", True))
        except ValueError as error:
            links.append(Link("artefact", str(error), False))
    live = packaging.live(recipe)
    roles = [role for role, held in (live.versions if live else {}).items() if held == number]
    if live and roles:
        same = live.hashes[roles[0]] == version.sha256
        links.append(Link("served", f"as {roles[0]} by Bento {live.tag}", same))
    trained_on = of_run.get("data_digest") == version.data_digest
    links.append(Link("run", f"{version.run_id} in MLflow", trained_on))
    links.append(_commit(version.git_commit, of_run.get("git_dirty") == "true", workspace))
    links.append(_data(recipe, version.data_digest, tags.get("data_version"), workspace))
    links.append(_validation(recipe, version.data_digest, workspace))
    try:
        events, damage = [event for event in history.read(recipe, workspace) if event.version == number], None
    except history.HistoryError as error:
        events, damage = [], str(error)
    links.append(_verdict(registry.read_text(version, "verdict.json"), version, events))
    links.append(_history(events, damage))
    return links


def _commit(commit: str | None, dirty: bool, workspace: Path) -> Link:
    if commit is None:
        return Link("commit", "not recorded: it was trained outside a repository", None)
    asked = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        there = subprocess.run(asked, cwd=workspace, capture_output=True, check=False).returncode == 0
    except OSError:
        return Link("commit", f"{commit[:12]}; git, which knows it, is not on this machine", None)
    if not there:
        return Link("commit", f"{commit[:12]} is not in this repository; fetch it", None)
    if dirty:
        return Link("commit", f"{commit[:12]}, and changes that were not committed", None)
    return Link("commit", commit[:12], True)


def _data(recipe: Recipe, digest: str, data_version: str | None, workspace: Path) -> Link:
    said = f"digest {digest[:12]}, DVC version {data_version or 'not recorded'}"
    if not layout.data_folder(recipe, workspace).exists():
        return Link("data", f"{said}; not in this workspace: dvc pull, or dvc repro ingest@{recipe.name}", None)
    folder = layout.data_folder(recipe, workspace)
    try:
        here, changed = images.open_dataset(folder).digest, images.changed_rows(folder)
    except images.DatasetError as error:
        return Link("data", str(error), False)
    if here != digest:
        return Link("data", f"{said}; this workspace has {here[:12]} now", None)
    if changed:
        return Link("data", f"{said}; {changed:,} images in {folder} are not those of its manifest", False)
    if data_version not in (None, provenance.data_version(recipe.name, workspace)):
        return Link("data", f"{said}; dvc.lock names another version of the same images", None)
    return Link("data", said, True)


def _validation(recipe: Recipe, digest: str, workspace: Path) -> Link:
    path = layout.report_folder(recipe, workspace) / "validation.json"
    if not path.is_file():
        return Link("validation", f"{path} is not in this workspace", None)
    report = provenance.read_json(path)
    if report["data_digest"] != digest:
        return Link("validation", "the last one in this workspace is of other data", None)
    met = sum(bool(each["success"]) for each in report["expectations"])
    return Link("validation", f"{met} of {len(report['expectations'])} expectations met", bool(report["success"]))


def _verdict(document: str | None, version: "Version", events: list[history.Event]) -> Link:
    if document is None:
        return Link("verdict", "the gate has not judged it", None)
    verdict = json.loads(document)
    recorded = [event for event in events if event.verdict and event.run == version.run_id]
    found, wanted = hashlib.sha256(document.encode()).hexdigest(), recorded[-1].verdict if recorded else None
    if wanted and found != wanted:
        if verdict["judged_at"] > recorded[-1].at:
            return Link("verdict", f"{verdict['reason']} It was judged again since it was promoted.", None)
        return Link("verdict", f"verdict.json was changed: its SHA-256 is {found}, on record is {wanted}", False)
    return Link("verdict", str(verdict["reason"]), verdict["artefacts"].get(version.candidate) == version.sha256)


def _history(events: list[history.Event], damage: str | None) -> Link:
    if damage:
        return Link("history", damage, False)
    said = "; ".join(f"{event.what} {event.at} by {event.who}" for event in events)
    return Link("history", said or "nothing happened to it", True)
