"""Old versions, runs and logged models: what the registry has, and their removal with their artefacts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.store import use_store
from mobilenet_pipeline.registry.versions import entries_of, is_ours

_MARK = "removed_by"
"""The tag of a run that is being removed, so that the next removal completes one that was killed."""
_PAGE = 1000


@dataclass(frozen=True)
class StoredRun:
    """A run of this pipeline: its parent, its logged models, and the places of the artefacts of all of them.

    `removing`: an earlier removal of this run was killed.
    """

    run_id: str
    parent: str | None
    started: int
    active: bool
    data_version: str | None
    models: tuple[str, ...]
    places: tuple[str, ...]
    removing: bool


@dataclass(frozen=True)
class StoredVersion:
    """A version of the registered model with its aliases, complete or not; `passed`: the gate would promote it."""

    number: str
    run_id: str
    sha256: str
    aliases: tuple[str, ...]
    passed: bool


@dataclass(frozen=True)
class Stock:
    """What the registry has of a recipe, the newest first."""

    versions: list[StoredVersion]
    runs: list[StoredRun]


def stock(recipe: Recipe) -> Stock:
    """Return the recipe's versions and runs; those that other programs made are left out."""
    use_store()
    client = MlflowClient()
    try:
        aliases = dict(client.get_registered_model(recipe.registered_model).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return Stock([], _runs(client, recipe))
    versions = [
        StoredVersion(
            str(entry.version),
            str(entry.run_id),
            entry.tags["artefact_sha256"],
            tuple(alias for alias, number in aliases.items() if str(number) == str(entry.version)),
            entry.tags.get("verdict") == "promoted",
        )
        for entry in entries_of(recipe.registered_model)
        if is_ours(entry)
    ]
    return Stock(versions, _runs(client, recipe))


def frees_artefacts() -> bool:
    """Return whether `remove_runs` deletes for good here; a server only hides runs until its own `mlflow gc`."""
    use_store()
    return hasattr(_get_store(), "_hard_delete_run")


def remove_version(recipe: Recipe, version: StoredVersion) -> None:
    """Delete the version from the registry. Its number is not used again; its run stays."""
    use_store()
    MlflowClient().delete_model_version(recipe.registered_model, version.number)


def remove_run(run: StoredRun) -> None:
    """Delete the run and its logged models, with their artefacts where the store allows it.

    `mlflow gc` is no help: it also deletes every experiment that anybody has put into MLflow's trash.
    """
    use_store()
    client, store = MlflowClient(), _get_store()
    if not run.removing:
        client.set_tag(run.run_id, _MARK, "mobilenet-pipeline gc", synchronous=True)
        client.delete_run(run.run_id)
    for model in run.models:
        client.delete_logged_model(model)
    if not hasattr(store, "_hard_delete_run"):
        return
    for place in run.places:
        get_artifact_repository(place).delete_artifacts()
        _remove_empty_parent(place)
    for model in run.models:
        store._hard_delete_logged_model(model)
    store._hard_delete_run(run.run_id)  # last: the next removal finds a run that was removed in part


def size(run: StoredRun) -> int | None:
    """Return the bytes of the run's artefacts, None if they are not on this machine's disk."""
    folders = [local_path(place) for place in run.places]
    if None in folders:
        return None
    paths = (path for folder in folders if folder for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def local_path(place: str) -> Path | None:
    """Return the folder that MLflow's location names, None if it is on no disk of this machine."""
    return Path(local_file_uri_to_path(place)) if urlsplit(place).scheme in ("", "file") else None


def _runs(client: MlflowClient, recipe: Recipe) -> list[StoredRun]:
    experiment = client.get_experiment_by_name(recipe.name)
    if experiment is None:
        return []
    active = _search(client, experiment.experiment_id, f"tags.recipe = '{recipe.name}'", ViewType.ACTIVE_ONLY)
    killed = _search(client, experiment.experiment_id, f"tags.{_MARK} != ''", ViewType.DELETED_ONLY)
    can_finish = frees_artefacts()
    found = [_stored(client, run, False) for run in active]
    found += [_stored(client, run, True) for run in killed if can_finish]
    return sorted(found, key=lambda run: -run.started)


def _search(client: MlflowClient, experiment: str, query: str, view: int) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], query, view, _PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _stored(client: MlflowClient, run: Run, removing: bool) -> StoredRun:
    tags, places, models = run.data.tags, [run.info.artifact_uri], []
    for output in run.outputs.model_outputs if run.outputs else []:
        try:
            model = _get_store().get_logged_model(output.model_id, allow_deleted=True)
        except MlflowException:
            continue  # removed before the removal was killed
        models.append(str(output.model_id))
        places.append(model.artifact_location)
    return StoredRun(
        str(run.info.run_id),
        tags.get(MLFLOW_PARENT_RUN_ID),
        run.info.start_time,
        run.info.status in ("RUNNING", "SCHEDULED"),
        tags.get("data_version"),
        tuple(models),
        tuple(places),
        removing,
    )


def _remove_empty_parent(place: str) -> None:
    """Remove the folder around `artifacts` on this disk, if nothing else is in it."""
    folder = local_path(place)
    if folder and folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
