"""The registry that a recipe belongs to, so that a forgotten setting does not start a second one unnoticed.

The experiment of a recipe has a random identity as a tag. A record of the workspace remembers it, and is shared with
other workspaces like all records.
"""

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.store import default_database, experiment, use_store
from mobilenet_pipeline.workspace import history, paths, records
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.history import Event
from mobilenet_pipeline.workspace.paths import HERE

_IDENTITY, _ADDRESS = "registry_id", "registry_address"
"""Tags of the experiment: a UUID, and the address at which the first run found the store."""
_RECORDS, _RECORDS_ID = "records", "records_id"
"""Tags of the experiment: the address and the UUID of the database of the shared records."""


@dataclass(frozen=True)
class Registry:
    """A registry: its identity, and the address at which it was first found.

    `events` is the length of the history when the registry was chosen; those events are about versions of others.
    """

    identity: str
    address: str
    events: int


class OtherRegistry(ValueError):
    """MLflow's store is not the one that the recipe's versions are in. The message has the remedy."""


def check(recipe: Recipe, workspace: Path = HERE) -> None:
    """Raise OtherRegistry if MLflow's store does not have the versions of the recipe's history; creates no store.

    Raises OtherRegistry, too, if decisions are recorded in a database that this workspace does not use.
    """
    exists = bool(os.environ.get("MLFLOW_TRACKING_URI")) or default_database().exists()
    entry = _experiment(recipe) if exists else None
    _check_records(recipe, entry)  # reading them would bring this workspace's lines into another database
    former, events = remembered(recipe, workspace), history.read(recipe, workspace, copy=True)
    identity = entry.tags.get(_IDENTITY) if entry else None
    if former and former.identity == identity:
        # Between `start_new` and the first promotion, the history is that of the former registry.
        complete = len(events) <= former.events or _has_versions(recipe)
    elif identity and not former:
        complete = not events or _has_versions(recipe, events)
    else:
        # The identity is lost with the experiment, and workspaces of earlier versions have none.
        complete = (not former and not events) or (exists and identity is None and _has_versions(recipe, events))
    if not complete:
        raise OtherRegistry(_refusal(recipe, former, entry))


def join(recipe: Recipe, workspace: Path = HERE) -> None:
    """Remember the registry as the recipe's, give it an identity if it has none, and check it; see `check`."""
    check(recipe, workspace)
    former, tags = remembered(recipe, workspace), _experiment_of(recipe).tags
    if not former or _IDENTITY not in tags or (records.shared() and _RECORDS_ID not in tags):
        _remember(recipe, former, 0, workspace)


def start_new(recipe: Recipe, workspace: Path = HERE) -> None:
    """Remember the present registry instead of the former one. What is withdrawn on record stays withdrawn."""
    use_store()
    _remember(recipe, None, len(history.read(recipe, workspace)), workspace)


def remembered(recipe: Recipe, workspace: Path = HERE) -> Registry | None:
    """Return the recipe's registry, None before the first run. Raises RecordError if its record is damaged."""
    lines = records.lines(paths.registry_path(recipe, workspace), copy=True)
    if not lines:
        return None
    try:
        return Registry(**json.loads(lines[-1]))
    except (ValueError, TypeError):
        path = paths.registry_path(recipe, workspace)
        raise records.RecordError(
            f"{path}, line {len(lines)} is damaged: {lines[-1][:80]!r}; restore the file, or delete it"
        ) from None


def _check_records(recipe: Recipe, entry: Experiment | None) -> None:
    """Raise OtherRegistry if the decisions on the registry's versions are recorded elsewhere."""
    tags = entry.tags if entry else {}
    if _RECORDS in tags and not records.shared():
        raise OtherRegistry(
            f"the decisions on {recipe.registered_model} are recorded at {tags[_RECORDS]}, and {records.SETTING} is "
            "not set; set it to that database, with user and password where it needs them"
        )
    if _RECORDS_ID in tags and _records_id() not in (None, tags[_RECORDS_ID]):
        raise OtherRegistry(
            f"the decisions on {recipe.registered_model} are recorded in the database that was at {tags[_RECORDS]}, "
            f"and {records.SETTING}={records.shared()} is another one; correct the setting, or leave that record for "
            f"good with `mobilenet-pipeline run --recipe {recipe.name} --new-registry`"
        )


def _records_id() -> str | None:
    """Return the UUID of the shared records, None if there are none or they do not answer."""
    try:
        return records.identity()
    except records.RecordsAway:
        return None


def _remember(recipe: Recipe, former: Registry | None, events: int, workspace: Path) -> None:
    with records.exclusively(f"registry-{recipe.name}", workspace):  # two first runs agree on one identity
        _remember_alone(recipe, former, events, workspace)


def _remember_alone(recipe: Recipe, former: Registry | None, events: int, workspace: Path) -> None:
    client, entry = MlflowClient(), _experiment_of(recipe)
    tags = {_ADDRESS: shown(mlflow.get_tracking_uri()), _IDENTITY: former.identity if former else uuid.uuid4().hex}
    present = {key: entry.tags.get(key, value) for key, value in tags.items()}
    place = {_RECORDS: records.shared(), _RECORDS_ID: records.identity()} if records.shared() else {}
    for key, value in (present | place).items():
        if entry.tags.get(key) != value:
            client.set_experiment_tag(entry.experiment_id, key, value)
    registry = Registry(present[_IDENTITY], present[_ADDRESS], former.events if former else events)
    if registry != former:
        records.append(paths.registry_path(recipe, workspace), lambda _: json.dumps(asdict(registry)))


def _experiment(recipe: Recipe) -> Experiment | None:
    use_store()
    return MlflowClient().get_experiment_by_name(recipe.name)


def _experiment_of(recipe: Recipe) -> Experiment:
    return MlflowClient().get_experiment(experiment(recipe))


def _has_versions(recipe: Recipe, events: list[Event] | None = None) -> bool:
    """Return whether the registry has versions of the recipe; if `events` are given, one that they are about."""
    query = f"name = '{recipe.registered_model}'"
    if events is not None:
        query += f" and run_id IN ({', '.join(sorted({repr(event.run) for event in events}))})"
    return bool(events != [] and MlflowClient().search_model_versions(query, max_results=1))


def _refusal(recipe: Recipe, former: Registry | None, entry: Experiment | None) -> str:
    setting = os.environ.get("MLFLOW_TRACKING_URI")
    present = (
        f"MLFLOW_TRACKING_URI={shown(setting)}"
        if setting
        else f"MLFLOW_TRACKING_URI is not set, and {default_database()}"
    )
    same = former and entry and entry.tags.get(_IDENTITY) == former.identity
    state = "is another registry" if entry and not same else "has no versions of it"
    home = f"the registry that was at {former.address}" if former else "a registry with the versions of its history"
    return (
        f"{recipe.registered_model} belongs to {home}, but {present} {state}. Set MLFLOW_TRACKING_URI to the former "
        "one, bring a lost one back with `mobilenet-pipeline restore FILE`, or leave it for good with "
        f"`mobilenet-pipeline run --recipe {recipe.name} --new-registry`"
    )
