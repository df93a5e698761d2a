"""The MLflow model registry: candidates become versions, aliases say which ones are served."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mobilenet_pipeline import tracking
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.provenance import CandidateFiles, check_sha256, read_candidate, read_json, sha256_of

SERVED = "served"
_ARTEFACT, _METADATA, _PREDICTIONS = "model.tflite", "metadata.json", "predictions.npz"
_COMPLETE = "complete"
DESCRIPTION = 5000
"""Characters of a version's description that every database of MLflow takes."""
TAGS = ("data_version", "flow_run", "parent_run", "dvc_lock_sha256")
EVALUATION = ("data_digest", "overlap", "artefact", "corruptions")
"""Of the evaluation's document, what the gate needs beside the predictions."""


class RegistryError(ValueError):
    """The registry does not hold what it should."""


@dataclass(frozen=True)
class Version:
    """A candidate in the registry. `accuracy` is on the test images of the data `data_digest`; `sha256` the artefact's.

    `verdict` is "promoted", "rejected" or None while the gate has not seen it; `git_commit` is None where unknown.
    `approval` is what a person said ("approved"), `withdrawn` why one took the version out, `preprocessing` the
    fingerprint of the code that decoded images when it was trained.
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


def register(
    recipe: Recipe, candidate: str, workspace: Path = Path("."), figures: Mapping[str, bytes] | None = None
) -> Version:
    """Make the candidate a version of the recipe's registered model; the same candidate again gives the same version.

    Its test metrics, `figures` ({file name: PNG}) and served artefacts go to the run that trained it, or to a new run
    made from the files where the store does not hold that one. Raises ProvenanceError naming the file that is missing,
    damaged or of other data than the rest.
    """
    tracking.use_store()
    files = read_candidate(recipe, candidate, workspace)
    known = [_version(entry) for entry in _entries(recipe.registered_model) if _is_ours(entry)]
    same = [
        v
        for v in known
        if (v.sha256, v.data_digest, v.candidate, v.recipe, v.preprocessing)
        == (files.sha256, files.data_digest, candidate, recipe.name, files.training.get("preprocessing"))
    ]
    client = MlflowClient()
    for version in same:
        if client.get_model_version(version.name, version.version).tags.get(_COMPLETE):
            return version
    version = same[0] if same else _create(recipe, candidate, files, {v.run_id for v in known})
    model_id = _logged_model(client.get_run(version.run_id))
    tracking.log_metrics(version.run_id, _metrics(files), model_id=model_id)
    for name, png in (figures or {}).items():
        tracking.log_file(version.run_id, png, name, "figures")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(files.folder / _ARTEFACT, folder / _ARTEFACT)
        shutil.copyfile(files.folder / _PREDICTIONS, folder / _PREDICTIONS)
        (folder / _METADATA).write_text(_json(_metadata(version, recipe, files)), encoding="utf-8")
        client.log_artifacts(version.run_id, scratch, SERVED)
    # Last: a registration that was cut short is taken up again by the next one.
    client.set_model_version_tag(version.name, version.version, _COMPLETE, "true")
    return version


def versions(name: str) -> list[Version]:
    """The complete versions that this pipeline registered under `name`, newest first; none where it has not yet."""
    tracking.use_store()
    return [_version(entry) for entry in _entries(name) if _is_ours(entry) and entry.tags.get(_COMPLETE)]


def with_alias(name: str, alias: str) -> Version | None:
    """The version that carries the alias, None where none does.

    Raises RegistryError where the alias is on a version that this pipeline did not register.
    """
    tracking.use_store()
    try:
        entry = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise tracking.StoreError(f"MLflow cannot say which version of {name} is {alias}: {error.message}") from None
    if not _is_ours(entry):
        raise RegistryError(
            f"the {alias} of {name}, version {entry.version}, was not registered by this pipeline; "
            f"in the MLflow UI move the alias to a version that was, or remove it"
        )
    return _version(entry)


def set_alias(name: str, alias: str, version: str | None) -> None:
    """Put the alias on the version; None takes it off."""
    tracking.use_store()
    client = MlflowClient()
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)


def fetch(version: Version, folder: Path) -> Path:
    """Download the version's served artefacts into `folder`, which is made, and return it.

    They are model.tflite, predictions.npz and metadata.json, which says how the gate judged the version if it did.
    Raises RegistryError where they are gone, and ProvenanceError naming the file and both hashes where one is not what
    was registered.
    """
    tracking.use_store()
    client = MlflowClient()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            source = Path(client.download_artifacts(version.run_id, SERVED, scratch))
        except (MlflowException, OSError) as error:
            place = client.get_run(version.run_id).info.artifact_uri
            raise RegistryError(
                f"version {version.version} of {version.name} has no artefacts at {place}/{SERVED} ({error}); if the "
                "project's directory was moved, move it back, else delete that version in the MLflow UI"
            ) from None
        metadata = read_json(source / _METADATA)
        for name, wanted in ((_ARTEFACT, version.sha256), (_PREDICTIONS, metadata["predictions_sha256"])):
            check_sha256(source / name, wanted, f"{name} of {version.name} version {version.version}")
        tags = client.get_model_version(version.name, version.version).tags
        if "verdict" in tags:
            metadata["verdict"] = {"promoted": tags["verdict"] == "promoted", "reason": tags["verdict_reason"]}
            (source / _METADATA).write_text(_json(metadata), encoding="utf-8")
        for path in source.iterdir():
            path.replace(folder / path.name)
    return folder


def record_verdict(
    version: Version,
    verdict: Mapping[str, Any],
    card: str,
    origin: Mapping[str, str | None],
    figures: Mapping[str, bytes],
) -> None:
    """Write the gate's document (`gate.Verdict.to_dict`) to a version that it judged: its card as the description and
    as card.md, verdict.json, `figures` ({file name: PNG}), and tags to filter by, with those of `origin` that are
    known."""
    tracking.use_store()
    client = MlflowClient()
    promoted = verdict["promote"] and verdict["winner"] == version.candidate
    tracking.log_file(version.run_id, _json(verdict).encode(), "verdict.json")
    tracking.log_file(version.run_id, card.encode(), "card.md")
    for name, png in figures.items():
        tracking.log_file(version.run_id, png, name, "figures")
    # The page has a heading of its own, and in a list of versions the description's first words are shown as they are.
    client.update_model_version(version.name, version.version, description=_short(card.removeprefix("# ")))
    known = {key: value for key, value in origin.items() if value and key in TAGS}
    tags = {"verdict_reason": str(verdict["reason"]), "verdict": "promoted" if promoted else "rejected"}
    for key, value in (known | tags).items():
        client.set_model_version_tag(version.name, version.version, key, value)


def verdict_sha256(verdict: Mapping[str, Any]) -> str:
    """SHA-256 of verdict.json, hex, as `record_verdict` writes it."""
    return hashlib.sha256(_json(verdict).encode()).hexdigest()


def announce(version: Version, sentence: str) -> None:
    """Let the version's description begin with what was decided of it, in place of what was decided before."""
    tracking.use_store()
    client = MlflowClient()
    card = re.sub(r"\A> .*\n\n", "", client.get_model_version(version.name, version.version).description or "")
    quoted = " ".join(sentence.split())  # one line, whatever a person has written
    client.update_model_version(version.name, version.version, description=_short(f"> {quoted}\n\n{card}"))


def _short(text: str) -> str:
    return text if len(text) <= DESCRIPTION else f"{text[: DESCRIPTION - 60]}…\n\nThe rest is in the run's card.md."


def find(name: str, number: str) -> Version:
    """The complete version with this number. Raises RegistryError naming those that there are."""
    known = {version.version: version for version in versions(name)}
    if number not in known:
        raise RegistryError(f"{name} has no version {number}; there are: {', '.join(known) or 'none'}")
    return known[number]


def set_tag(version: Version, key: str, value: str) -> None:
    """Tag the version; an empty value says that there is none."""
    tracking.use_store()
    MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def read_text(version: Version, name: str) -> str | None:
    """An artefact of the version's run, like card.md or verdict.json; None where there is none."""
    tracking.use_store()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(MlflowClient().download_artifacts(version.run_id, name, scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None


def tags_of(version: Version) -> dict[str, str]:
    """The version's tags, and those of its run."""
    return {**tags_of_run(version), **MlflowClient().get_model_version(version.name, version.version).tags}


def tags_of_run(version: Version) -> dict[str, str]:
    """The tags of the run that trained the version."""
    tracking.use_store()
    return dict(MlflowClient().get_run(version.run_id).data.tags)


def _create(recipe: Recipe, candidate: str, files: CandidateFiles, taken: set[str]) -> Version:
    client = MlflowClient()
    run = _find_run(str(files.training["run_id"]))
    if run is None or run.info.run_id in taken:
        # A run holds the artefacts of one version: one that was exported anew from the same training gets its own.
        run_id = tracking.restore_run(recipe, candidate, files.training, files.history, files.dataset)
        run = client.get_run(run_id)
    try:
        client.create_registered_model(recipe.registered_model, description=_of_all_versions(recipe))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    test, model_id = files.metrics["test"], _logged_model(run)
    tags = {
        "recipe": recipe.name,
        "candidate": candidate,
        "data_digest": files.data_digest,
        "artefact_sha256": files.sha256,
        "test_accuracy": repr(float(test["accuracy"])),
        "precision": recipe.serving.precision,
        "run_id": run.info.run_id,
    }
    if files.training.get("preprocessing"):
        tags["preprocessing"] = files.training["preprocessing"]
    commit = files.training.get("git_commit") or run.data.tags.get("git_commit")
    entry = client.create_model_version(
        recipe.registered_model,
        f"models:/{model_id}" if model_id else f"runs:/{run.info.run_id}/{SERVED}",
        run.info.run_id,
        tags=tags | ({"git_commit": commit} if commit else {}),
        description=_description(recipe, candidate, files),
        model_id=model_id,
    )
    return _version(entry)


def _of_all_versions(recipe: Recipe) -> str:
    return (
        f"MobileNets on {recipe.data.source}, from recipe `{recipe.name}`.\n\n"
        "- `champion` is what the service answers with, `challenger` what /compare sets beside it, `previous` the "
        "champion before.\n"
        "- A version's description is its model card, its tag `verdict` what the gate said.\n"
        "- Who made which version champion, when and why: "
        f"`mobilenet-pipeline history --recipe {recipe.name}`.\n"
    )


def _description(recipe: Recipe, candidate: str, files: CandidateFiles) -> str:
    test, training = files.metrics["test"], files.training
    return (
        f"Not judged yet: {candidate} MobileNet of recipe `{recipe.name}`, started from {training.get('weights')}.\n\n"
        f"- test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} on {test['rows']:,} images\n"
        f"- data `{files.data_digest}`\n"
        f"- {training.get('parameters', 0):,} parameters, {training.get('multiply_adds', 0):,} multiply-adds\n"
    )


def _metrics(files: CandidateFiles) -> dict[str, float]:
    # The training's own validation metrics are a curve by epoch; the artefact's must not become a point of it.
    found = {
        f"{prefix}_{key}": files.metrics[split][key]
        for split, prefix in (("test", "test"), ("validation", "artefact_validation"))
        for key in ("accuracy", "loss", "top3_accuracy")
    }
    found |= {f"test_accuracy_{_plain(name)}": share for name, share in files.metrics["per_class_accuracy"].items()}
    costs = ("cpu_minutes", "wall_minutes", "parameters", "multiply_adds", "replicas", "global_batch")
    return found | {key: files.training[key] for key in costs if key in files.training}


def _metadata(version: Version, recipe: Recipe, files: CandidateFiles) -> dict[str, Any]:
    return {
        "registered_model": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "recipe": version.recipe,
        "candidate": version.candidate,
        "class_names": list(files.metrics.get("class_names") or recipe.data.class_names),
        "data_digest": version.data_digest,
        "sha256": version.sha256,
        "predictions_sha256": sha256_of(files.folder / _PREDICTIONS),
        "git_commit": version.git_commit,
        "test": {key: files.metrics["test"][key] for key in ("accuracy", "loss", "top3_accuracy", "rows")},
        "preprocessing": files.training.get("preprocessing"),
        "evaluation": {key: files.metrics[key] for key in EVALUATION if key in files.metrics},
    }


def _find_run(run_id: str) -> Run | None:
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _logged_model(run: Run) -> str | None:
    for output in run.outputs.model_outputs if run.outputs else []:
        if MlflowClient().get_logged_model(output.model_id).name == tracking.MODEL_NAME:
            return str(output.model_id)
    return None


def _entries(name: str) -> list[ModelVersion]:
    quoted = name.replace("'", "''")
    found: list[ModelVersion] = []
    token = None
    while True:
        page = MlflowClient().search_model_versions(f"name='{quoted}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda entry: -int(entry.version))


def _is_ours(entry: ModelVersion) -> bool:
    return "artefact_sha256" in entry.tags


def _version(entry: ModelVersion) -> Version:
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
    )


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(name: str) -> str:
    """A class name as a metric's name, where MLflow admits only some characters."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
