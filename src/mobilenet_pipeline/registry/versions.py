"""Registered versions: what is known of them, their artefacts, tags and descriptions."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import check_sha256
from mobilenet_pipeline.inference.trust import answer_alike
from mobilenet_pipeline.registry.away import answering, is_away
from mobilenet_pipeline.registry.store import use_store
from mobilenet_pipeline.workspace.candidate import CandidateFiles
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json

SERVED = "served"
ARTEFACT, METADATA, PREDICTIONS = "model.tflite", "metadata.json", "predictions.npz"
COMPLETE, ANSWERING = "complete", "answering"
LISTED = 20
"""How many versions an error names."""
DESCRIPTION = 5000
"""The longest description of a version, in characters, that all of MLflow's databases accept."""


class RegistryError(ValueError):
    """A version or an artefact is missing from the registry, or is not this pipeline's."""


class ArtefactsLost(RegistryError):
    """The registry has a version, but not its artefacts."""


@dataclass(frozen=True)
class Version:
    """A candidate in the registry.

    `accuracy` is on the test images of the data `data_digest`; `sha256` is the artefact's. `verdict` is "promoted",
    "rejected", or None before the gate's verdict. `git_commit` is None if unknown. `approval` is "approved" after a
    person's approval. `withdrawn` is the reason of the person who withdrew the version, or None. `preprocessing` is the
    fingerprint of the image decoder at training. `answering` is what decides its answers beside the artefact, None for
    versions of earlier releases.
    """

    name: str
    version: str
    run_id: str
    candidate: str
    recipe: str
    accuracy: float
    data_digest: str
    sha256: str
    git_commit: str | None = None
    verdict: str | None = None
    approval: str | None = None
    withdrawn: str | None = None
    preprocessing: str | None = None
    answering: dict[str, Any] | None = None

    def decodes_like(self, preprocessing: str) -> bool:
        """Return whether training and a service with this decoder decode images alike."""
        return self.preprocessing in (None, preprocessing)

    def answers_like(self, answering: Mapping[str, Any]) -> bool:
        """Return whether the version has these limits and this resizing."""
        return self.answering is not None and answer_alike(self.answering, answering)

    def is_of(self, recipe: Recipe, files: CandidateFiles) -> bool:
        """Return whether the version was registered from these files."""
        expected = (recipe.name, files.name, files.sha256, files.data_digest, files.training.get("preprocessing"))
        return (self.recipe, self.candidate, self.sha256, self.data_digest, self.preprocessing) == expected


def versions(name: str) -> list[Version]:
    """Return this pipeline's complete versions of the model `name`, newest first."""
    use_store()
    return [version_of(entry) for entry in entries_of(name) if is_ours(entry) and entry.tags.get(COMPLETE)]


def fetch(version: Version, folder: Path) -> Path:
    """Download the version's served artefacts into `folder` and return `folder`.

    The files are model.tflite, predictions.npz and metadata.json, which includes the gate's verdict if there is one.
    Raises ArtefactsLost if the artefacts are missing, ArtefactError, naming the file and both hashes, if a file
    differs from the registered one, and StoreAwayError if the artefact store does not answer.
    """
    use_store()
    client = MlflowClient()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            source = Path(client.download_artifacts(version.run_id, SERVED, scratch))
        except (MlflowException, OSError) as error:
            run = find_run(version.run_id)
            if run:
                has_artefact(version.run_id, f"{SERVED}/{ARTEFACT}")  # raises an error if the store does not answer
            cause = f"there are none at {run.info.artifact_uri}/{SERVED} ({error})" if run else _gone(version)
            raise ArtefactsLost(
                f"the artefacts of {version.name} version {version.version} are lost: {cause}; if the project's "
                "directory was moved, move it back, else delete that version in the MLflow UI"
            ) from None
        try:
            metadata = read_json(source / METADATA)
        except WorkspaceError:
            raise ArtefactsLost(
                f"the artefacts of {version.name} version {version.version} are lost: their {METADATA} is missing or "
                "damaged; delete that version in the MLflow UI, unless another copy is found"
            ) from None
        for name, expected in ((ARTEFACT, version.sha256), (PREDICTIONS, metadata["predictions_sha256"])):
            check_sha256(source / name, expected, f"{name} of {version.name} version {version.version}")
        # Somebody may have renamed the registered model since; the hashes above say that the files are this version's.
        metadata |= {"registered_model": version.name, "version": version.version}
        tags = client.get_model_version(version.name, version.version).tags
        if "verdict" in tags:
            metadata["verdict"] = {"promoted": tags["verdict"] == "promoted", "reason": _reason(version, tags)}
        (source / METADATA).write_text(to_json(metadata), encoding="utf-8")
        for path in source.iterdir():
            path.replace(folder / path.name)
    return folder


def _reason(version: Version, tags: Mapping[str, str]) -> str:
    """Return the reason of the version's verdict; older versions have it as a tag. A damaged verdict has none."""
    document = read_artefact(version, "verdict.json")
    try:
        return tags.get("verdict_reason") or (str(json.loads(document)["reason"]) if document else "")
    except (ValueError, LookupError, TypeError):
        return ""


def is_stored(version: Version) -> bool:
    """Return whether the registry has the version's run and its artefact, whatever the artefact's bytes.

    Raises StoreAwayError if the artefact store does not answer.
    """
    use_store()
    return find_run(version.run_id) is not None and has_artefact(version.run_id, f"{SERVED}/{ARTEFACT}")


def has_artefact(run_id: str, name: str) -> bool:
    """Return whether a run has the artefact `name`. Raises StoreAwayError if its store does not answer.

    MLflow's downloads raise the same error for an artefact that is missing and a store that is away.
    """
    folder, _, _ = name.rpartition("/")
    with answering():
        try:
            stored = MlflowClient().list_artifacts(run_id, folder or None)
        except (MlflowException, OSError) as error:
            if is_away(error):
                raise
            return False
    return name in {entry.path for entry in stored}


def put_back(version: Version, folder: Path) -> bool:
    """Store the served artefacts in `folder` with the version's run; return whether the store still has that run."""
    use_store()
    if find_run(version.run_id) is None:
        return False
    MlflowClient().log_artifacts(version.run_id, str(folder), SERVED)
    return True


def lost_run(version: Version) -> str | None:
    """Return a sentence if the store lacks the version's run, with which its artefacts and its verdict are lost."""
    use_store()
    return None if find_run(version.run_id) else _gone(version)


def _gone(version: Version) -> str:
    return f"run {version.run_id} of version {version.version} was deleted in MLflow"


def announce(version: Version, sentence: str) -> None:
    """Put `sentence` at the top of the version's description.

    It is the last decision on the version and replaces the earlier one.
    """
    use_store()
    client = MlflowClient()
    card = re.sub(r"\A> .*\n\n", "", client.get_model_version(version.name, version.version).description or "")
    quoted = " ".join(sentence.split())  # a person's text may have line breaks
    client.update_model_version(version.name, version.version, description=shorten(f"> {quoted}\n\n{card}"))


def shorten(text: str) -> str:
    return text if len(text) <= DESCRIPTION else f"{text[: DESCRIPTION - 60]}…\n\nThe rest is in the run's card.md."


def find(name: str, number: str) -> Version:
    """Return the complete version with this number.

    Raises RegistryError, naming the existing versions, if there is none.
    """
    use_store()
    entry = _entry(name, number)
    if entry and is_ours(entry) and entry.tags.get(COMPLETE):
        return version_of(entry)
    known = [version.version for version in versions(name)]
    older = f" and {len(known) - LISTED:,} older ones" if len(known) > LISTED else ""
    raise RegistryError(f"{name} has no version {number}; there are: {', '.join(known[:LISTED]) or 'none'}{older}")


def _entry(name: str, number: str) -> ModelVersion | None:
    """Return the entry with this number, None if there is none, or if no version can have this number."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", number):  # databases raise errors of their own for a longer one
        return None
    try:
        return MlflowClient().get_model_version(name, number)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def set_tag(version: Version, key: str, value: str) -> None:
    """Set a tag of the version; an empty value counts as no value."""
    use_store()
    MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def read_artefact(version: Version, name: str) -> str | None:
    """Return a text artefact of the version's run, such as card.md, or None.

    None means that the run has no such artefact. Raises StoreAwayError if its store does not answer.
    """
    use_store()
    if not has_artefact(version.run_id, name):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(MlflowClient().download_artifacts(version.run_id, name, scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None


def tags_of_version(version: Version) -> dict[str, str]:
    """Return the tags of the version."""
    use_store()
    return dict(MlflowClient().get_model_version(version.name, version.version).tags)


def tags_of_run(run_id: str) -> dict[str, str]:
    """Return the tags of a training's run; none if the store lacks the run."""
    use_store()
    run = find_run(run_id)
    return dict(run.data.tags) if run else {}


def find_run(run_id: str) -> Run | None:
    """Return the run, None if the store lacks it or somebody deleted it."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def entries_of(name: str) -> list[ModelVersion]:
    quoted = name.replace("'", "''")
    entries: list[ModelVersion] = []
    token = None
    while True:
        page = MlflowClient().search_model_versions(f"name='{quoted}'", page_token=token)
        entries += page
        token = page.token
        if not token:
            return sorted(entries, key=lambda entry: -int(entry.version))


def is_ours(entry: ModelVersion) -> bool:
    return "artefact_sha256" in entry.tags


def version_of(entry: ModelVersion) -> Version:
    tags = entry.tags
    return Version(
        name=entry.name,
        version=str(entry.version),
        run_id=str(entry.run_id),
        candidate=tags["candidate"],
        recipe=tags["recipe"],
        accuracy=float(tags["test_accuracy"]),
        data_digest=tags["data_digest"],
        sha256=tags["artefact_sha256"],
        git_commit=tags.get("git_commit"),
        verdict=tags.get("verdict"),
        approval=tags.get("approval"),
        withdrawn=tags.get("withdrawn") or None,
        preprocessing=tags.get("preprocessing"),
        answering=json.loads(tags[ANSWERING]) if tags.get(ANSWERING) else None,
    )


def number_of(version: Version | None) -> str | None:
    """Return the version's number, None without a version."""
    return version.version if version else None


def to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
