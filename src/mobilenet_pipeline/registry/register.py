"""Candidates become versions of a registered model, and get the verdict of the gate."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_PARENT_RUN_ID

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.trust import answering
from mobilenet_pipeline.registry import reference, runs
from mobilenet_pipeline.registry.documents import (
    facts_of,
    limits_of,
    metadata,
    metrics_of,
    model_description,
    per_class_table,
    version_description,
)
from mobilenet_pipeline.registry.store import use_store
from mobilenet_pipeline.registry.versions import (
    ANSWERING,
    ARTEFACT,
    COMPLETE,
    METADATA,
    PREDICTIONS,
    SERVED,
    Version,
    entries_of,
    find_run,
    is_ours,
    shorten,
    tags_of_run,
    to_json,
    version_of,
)
from mobilenet_pipeline.workspace.candidate import CandidateFiles

ORIGIN = ("data_version", "flow_run", "dvc_lock_sha256")
"""The facts about a version's past that its run has as tags."""


def register(
    recipe: Recipe,
    files: CandidateFiles,
    draw: Callable[[], Mapping[str, bytes]] = dict,
    describe: Callable[[], bytes | None] = lambda: None,
) -> Version:
    """Register the candidate and return its version.

    The same candidate gives the same version again; if its limits or its resizing are others now, the version gets its
    documents and figures anew. Test metrics, figures and artefacts go to the run of the training, or to a new run if
    the store lacks that run. `draw` returns the figures as {file name: PNG}. `describe` returns the reference for the
    monitoring, or None. Both are called only if they are needed.
    """
    use_store()
    entries = [entry for entry in entries_of(recipe.registered_model) if is_ours(entry)]
    # A version whose run was deleted has no place for artefacts and verdicts; the candidate becomes a new version.
    same = next(
        (entry for entry in entries if version_of(entry).is_of(recipe, files) and find_run(str(entry.run_id))), None
    )
    now = answering(limits_of(recipe, files.metrics))
    if same and same.tags.get(COMPLETE) and version_of(same).answers_like(now):
        return version_of(same)
    client = MlflowClient()
    version = version_of(same) if same else _create(recipe, files, {str(entry.run_id) for entry in entries})
    model_id = _logged_model(client.get_run(version.run_id))
    runs.log_metrics(version.run_id, metrics_of(files), 0, model_id, runs.dataset_of(recipe, files.dataset))
    runs.log_parameters(version.run_id, facts_of(files))
    runs.log_file(version.run_id, per_class_table(files).encode(), "per_class.csv")
    for name, png in draw().items():
        runs.log_file(version.run_id, png, name, "figures")
    if data := describe():
        reference.put(version, data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(files.folder / ARTEFACT, folder / ARTEFACT)
        shutil.copyfile(files.folder / PREDICTIONS, folder / PREDICTIONS)
        (folder / METADATA).write_text(to_json(metadata(version, recipe, files)), encoding="utf-8")
        client.log_artifacts(version.run_id, scratch, SERVED)
    if model_id:
        _link(model_id, version)
    client.set_model_version_tag(version.name, version.version, ANSWERING, json.dumps(now))
    # Last: the next call completes a registration that was cut short.
    client.set_model_version_tag(version.name, version.version, COMPLETE, "true")
    return replace(version, answering=now)


def record_verdict(
    version: Version,
    verdict: str,
    card: str,
    promoted: bool,
    origin: Mapping[str, str | None],
    figures: Mapping[str, bytes],
) -> None:
    """Write the gate's verdict to the version that it judged.

    `verdict` is the text of verdict.json. `card` becomes the description and card.md. `figures` is {file name: PNG}.
    `promoted` becomes a tag. The run gets the known values of `origin` that it lacks.
    """
    use_store()
    client = MlflowClient()
    runs.log_file(version.run_id, verdict.encode(), "verdict.json")
    runs.log_file(version.run_id, card.encode(), "card.md")
    for name, png in figures.items():
        runs.log_file(version.run_id, png, name, "figures")
    # Without the heading's mark: a list of versions shows the description's first words as plain text.
    client.update_model_version(version.name, version.version, description=shorten(card.removeprefix("# ")))
    known = tags_of_run(version.run_id)
    for key in ORIGIN:
        if key not in known and (value := origin.get(key)):
            client.set_tag(version.run_id, key, value, synchronous=True)
    client.set_model_version_tag(version.name, version.version, "verdict", "promoted" if promoted else "rejected")


def _create(recipe: Recipe, files: CandidateFiles, taken: set[str]) -> Version:
    client = MlflowClient()
    run = find_run(str(files.training["run_id"]))
    if run is None or run.info.run_id in taken:
        # A run has the artefacts of one version. A second export of the same training gets its own run.
        parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID) if run else None
        run_id = runs.restore_run(recipe, files.name, files.training, files.history, files.dataset, parent)
        run = client.get_run(run_id)
    try:
        client.create_registered_model(recipe.registered_model, description=model_description(recipe))
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
    }
    if files.training.get("preprocessing"):
        tags["preprocessing"] = files.training["preprocessing"]
    commit = files.training.get("git_commit") or run.data.tags.get("git_commit")
    entry = client.create_model_version(
        recipe.registered_model,
        f"models:/{model_id}" if model_id else f"runs:/{run.info.run_id}/{SERVED}",
        run.info.run_id,
        tags=tags | ({"git_commit": commit} if commit else {}),
        description=version_description(recipe, files),
        model_id=model_id,
    )
    return version_of(entry)


def _link(model_id: str, version: Version) -> None:
    """Write the tag by which a logged model's page shows its version, as `mlflow.register_model` does."""
    client = MlflowClient()
    linked = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    entry = {"name": version.name, "version": version.version}
    if entry not in linked:
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*linked, entry])})


def _logged_model(run: Run) -> str | None:
    for output in run.outputs.model_outputs if run.outputs else []:
        if MlflowClient().get_logged_model(output.model_id).name == runs.MODEL_NAME:
            return str(output.model_id)
    return None
