"""The MLflow model registry: versions of candidates, and aliases for the served ones."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import check_sha256
from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.registry.store import StoreError, use_store
from mobilenet_pipeline.workspace.candidate import CandidateFiles
from mobilenet_pipeline.workspace.files import read_json, sha256_of

SERVED = "served"
_ARTEFACT, _METADATA, _PREDICTIONS = "model.tflite", "metadata.json", "predictions.npz"
_COMPLETE = "complete"
DESCRIPTION = 5000
"""The longest description of a version, in characters, that all of MLflow's databases accept."""
TAGS = ("data_version", "flow_run", "parent_run", "dvc_lock_sha256")
EVALUATION = ("data_digest", "overlap", "artefact", "corruptions")
"""The keys of the evaluation's document that the gate needs in addition to the predictions."""


class RegistryError(ValueError):
    """A version or an artefact is missing from the registry, or is not this pipeline's."""


class ChampionChanged(RegistryError):
    """The alias `champion` was moved after the verdict, or during the check of a Bento."""


@dataclass(frozen=True)
class Version:
    """A candidate in the registry.

    `accuracy` is on the test images of the data `data_digest`; `sha256` is the artefact's. `verdict` is "promoted",
    "rejected", or None before the gate's verdict. `git_commit` is None if unknown. `approval` is "approved" after a
    person's approval. `withdrawn` is the reason of the person who withdrew the version, or None. `preprocessing` is the
    fingerprint of the image decoder at training.
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

    def decodes_like(self, preprocessing: str) -> bool:
        """Return whether training and a service with this decoder decode images alike."""
        return self.preprocessing in (None, preprocessing)


@dataclass(frozen=True)
class State:
    """A registered model now: its complete versions, newest first, and the versions with the two aliases."""

    name: str
    versions: list[Version]
    champion: Version | None
    challenger: Version | None

    def number(self, number: str | None) -> Version | None:
        """Return the version with this number, None if there is none."""
        return next((version for version in self.versions if version.version == number), None)

    @property
    def aliases(self) -> dict[str, str | None]:
        """The numbers of champion and challenger."""
        return {"champion": number_of(self.champion), "challenger": number_of(self.challenger)}


def read_state(name: str) -> State:
    """Read the registered model `name`.

    Raises RegistryError if an alias is on a version of another program.
    """
    return State(name, versions(name), with_alias(name, "champion"), with_alias(name, "challenger"))


def same_candidate(recipe: Recipe, files: CandidateFiles, known: Sequence[Version]) -> Version | None:
    """Return the version in `known` with the same files, None if there is none."""
    identity = (files.sha256, files.data_digest, files.name, recipe.name, files.training.get("preprocessing"))
    return next(
        (v for v in known if (v.sha256, v.data_digest, v.candidate, v.recipe, v.preprocessing) == identity), None
    )


def register(recipe: Recipe, files: CandidateFiles, draw: Callable[[], Mapping[str, bytes]] = dict) -> Version:
    """Register the candidate and return its version.

    The same candidate gives the same version again. Test metrics, figures and artefacts go to the run of the training,
    or to a new run if the store lacks that run. `draw` returns the figures as {file name: PNG}; it is called only if
    they are needed.
    """
    use_store()
    entries = [entry for entry in _entries(recipe.registered_model) if _is_ours(entry)]
    known = [_version(entry) for entry in entries]
    complete = [_version(entry) for entry in entries if entry.tags.get(_COMPLETE)]
    if version := same_candidate(recipe, files, complete):
        return version
    client = MlflowClient()
    version = same_candidate(recipe, files, known) or _create(recipe, files, {v.run_id for v in known})
    model_id = _logged_model(client.get_run(version.run_id))
    runs.log_metrics(version.run_id, _metrics(files), model_id=model_id)
    for name, png in draw().items():
        runs.log_file(version.run_id, png, name, "figures")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(files.folder / _ARTEFACT, folder / _ARTEFACT)
        shutil.copyfile(files.folder / _PREDICTIONS, folder / _PREDICTIONS)
        (folder / _METADATA).write_text(_json(_metadata(version, recipe, files)), encoding="utf-8")
        client.log_artifacts(version.run_id, scratch, SERVED)
    # Last: the next call completes a registration that was cut short.
    client.set_model_version_tag(version.name, version.version, _COMPLETE, "true")
    return version


def versions(name: str) -> list[Version]:
    """Return this pipeline's complete versions of the model `name`, newest first."""
    use_store()
    return [_version(entry) for entry in _entries(name) if _is_ours(entry) and entry.tags.get(_COMPLETE)]


def with_alias(name: str, alias: str) -> Version | None:
    """Return the version with the alias, None if there is none.

    Raises RegistryError if the alias is on a version of another program.
    """
    use_store()
    try:
        entry = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise StoreError(f"MLflow cannot read the alias {alias} of {name}: {error.message}") from None
    if not _is_ours(entry):
        raise RegistryError(
            f"the {alias} of {name}, version {entry.version}, was not registered by this pipeline; in the MLflow UI, "
            "remove the alias or move it to a version that was"
        )
    return _version(entry)


def set_alias(name: str, alias: str, version: str | None) -> None:
    """Set the alias to the version; None removes it."""
    use_store()
    client = MlflowClient()
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)


def move_aliases(former: State, champion: Version, challenger: Version | None) -> None:
    """Set the aliases `challenger`, `previous` and, last, `champion`.

    Raises ChampionChanged, and moves nothing, if the champion is no longer that of `former`.
    """
    name, current = former.name, with_alias(former.name, "champion")
    if number_of(current) not in (number_of(former.champion), champion.version):
        moved_to = f"version {current.version}" if current else "no version"
        raise ChampionChanged(
            f"the alias champion of {name} was moved to {moved_to} while version {champion.version} was checked; see "
            f"`mobilenet-pipeline status --recipe {champion.recipe}`"
        )
    set_alias(name, "challenger", number_of(challenger))
    if former.champion and former.champion.version != champion.version:
        set_alias(name, "previous", former.champion.version)
    set_alias(name, "champion", champion.version)


def fetch(version: Version, folder: Path) -> Path:
    """Download the version's served artefacts into `folder` and return `folder`.

    The files are model.tflite, predictions.npz and metadata.json, which includes the gate's verdict if there is one.
    Raises RegistryError if the artefacts are missing, and ArtefactError, naming the file and both hashes, if a file
    differs from the registered one.
    """
    use_store()
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
        for name, expected in ((_ARTEFACT, version.sha256), (_PREDICTIONS, metadata["predictions_sha256"])):
            check_sha256(source / name, expected, f"{name} of {version.name} version {version.version}")
        tags = client.get_model_version(version.name, version.version).tags
        if "verdict" in tags:
            metadata["verdict"] = {"promoted": tags["verdict"] == "promoted", "reason": tags["verdict_reason"]}
            (source / _METADATA).write_text(_json(metadata), encoding="utf-8")
        for path in source.iterdir():
            path.replace(folder / path.name)
    return folder


def record_verdict(
    version: Version,
    verdict: str,
    card: str,
    reason: str,
    promoted: bool,
    origin: Mapping[str, str | None],
    figures: Mapping[str, bytes],
) -> None:
    """Write the gate's verdict to the version that it judged.

    `verdict` is the text of verdict.json. `card` becomes the description and card.md. `figures` is {file name: PNG}.
    `reason`, `promoted` and the known values of `origin` become tags for filters.
    """
    use_store()
    client = MlflowClient()
    runs.log_file(version.run_id, verdict.encode(), "verdict.json")
    runs.log_file(version.run_id, card.encode(), "card.md")
    for name, png in figures.items():
        runs.log_file(version.run_id, png, name, "figures")
    # Without the heading's mark: a list of versions shows the description's first words as plain text.
    client.update_model_version(version.name, version.version, description=_short(card.removeprefix("# ")))
    origin_tags = {key: value for key, value in origin.items() if value and key in TAGS}
    tags = {"verdict_reason": reason, "verdict": "promoted" if promoted else "rejected"}
    for key, value in (origin_tags | tags).items():
        client.set_model_version_tag(version.name, version.version, key, value)


def announce(version: Version, sentence: str) -> None:
    """Put `sentence` at the top of the version's description.

    It is the last decision on the version and replaces the earlier one.
    """
    use_store()
    client = MlflowClient()
    card = re.sub(r"\A> .*\n\n", "", client.get_model_version(version.name, version.version).description or "")
    quoted = " ".join(sentence.split())  # a person's text may have line breaks
    client.update_model_version(version.name, version.version, description=_short(f"> {quoted}\n\n{card}"))


def _short(text: str) -> str:
    return text if len(text) <= DESCRIPTION else f"{text[: DESCRIPTION - 60]}…\n\nThe rest is in the run's card.md."


def find(name: str, number: str) -> Version:
    """Return the complete version with this number.

    Raises RegistryError, naming the existing versions, if there is none.
    """
    known = {version.version: version for version in versions(name)}
    if number not in known:
        raise RegistryError(f"{name} has no version {number}; there are: {', '.join(known) or 'none'}")
    return known[number]


def set_tag(version: Version, key: str, value: str) -> None:
    """Set a tag of the version; an empty value counts as no value."""
    use_store()
    MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def read_text(version: Version, name: str) -> str | None:
    """Return a text artefact of the version's run, such as card.md, or None.

    None means that the run has no such artefact.
    """
    use_store()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(MlflowClient().download_artifacts(version.run_id, name, scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None


def tags_of_version(version: Version) -> dict[str, str]:
    """Return the tags of the version."""
    use_store()
    return dict(MlflowClient().get_model_version(version.name, version.version).tags)


def tags_of_run(version: Version) -> dict[str, str]:
    """Return the tags of the run that trained the version."""
    use_store()
    return dict(MlflowClient().get_run(version.run_id).data.tags)


def _create(recipe: Recipe, files: CandidateFiles, taken: set[str]) -> Version:
    client = MlflowClient()
    run = _find_run(str(files.training["run_id"]))
    if run is None or run.info.run_id in taken:
        # A run has the artefacts of one version. A second export of the same training gets its own run.
        run_id = runs.restore_run(recipe, files.name, files.training, files.history, files.dataset)
        run = client.get_run(run_id)
    try:
        client.create_registered_model(recipe.registered_model, description=_of_all_versions(recipe))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    test, model_id = files.metrics["test"], _logged_model(run)
    tags = {
        "recipe": recipe.name,
        "candidate": files.name,
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
        description=_description(recipe, files),
        model_id=model_id,
    )
    return _version(entry)


def _of_all_versions(recipe: Recipe) -> str:
    return (
        f"MobileNets on {recipe.data.source}, from recipe `{recipe.name}`.\n\n"
        "- The service answers with `champion`; /compare adds the answer of `challenger`; `previous` is the previous "
        "champion.\n"
        "- A version's description is its model card. Its tag `verdict` is the gate's verdict.\n"
        f"- `mobilenet-pipeline history --recipe {recipe.name}` lists all changes of champion, with person, time and "
        "reason.\n"
    )


def _description(recipe: Recipe, files: CandidateFiles) -> str:
    test, training = files.metrics["test"], files.training
    return (
        f"Not judged yet: {files.name} MobileNet of recipe `{recipe.name}`.\n\n"
        f"- initial weights: {training.get('weights')}\n"
        f"- test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} on {test['rows']:,} images\n"
        f"- data `{files.data_digest}`\n"
        f"- {training.get('parameters', 0):,} parameters, {training.get('multiply_adds', 0):,} multiply-adds\n"
    )


def _metrics(files: CandidateFiles) -> dict[str, float]:
    # The prefix separates the artefact's validation metrics from the learning curve of the training.
    metrics = {
        f"{prefix}_{key}": files.metrics[split][key]
        for split, prefix in (("test", "test"), ("validation", "artefact_validation"))
        for key in ("accuracy", "loss", "top3_accuracy")
    }
    metrics |= {f"test_accuracy_{_plain(name)}": share for name, share in files.metrics["per_class_accuracy"].items()}
    costs = ("cpu_minutes", "wall_minutes", "parameters", "multiply_adds", "replicas", "global_batch")
    return metrics | {key: files.training[key] for key in costs if key in files.training}


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
        if MlflowClient().get_logged_model(output.model_id).name == runs.MODEL_NAME:
            return str(output.model_id)
    return None


def _entries(name: str) -> list[ModelVersion]:
    quoted = name.replace("'", "''")
    entries: list[ModelVersion] = []
    token = None
    while True:
        page = MlflowClient().search_model_versions(f"name='{quoted}'", page_token=token)
        entries += page
        token = page.token
        if not token:
            return sorted(entries, key=lambda entry: -int(entry.version))


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


def number_of(version: Version | None) -> str | None:
    """Return the version's number, None without a version."""
    return version.version if version else None


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(name: str) -> str:
    """Return a class name in the characters that MLflow allows in metric names."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
