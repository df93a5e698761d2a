"""The other flow runs of a recipe: mark dead ones as crashed, and find the run that goes instead of this one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

from mobilenet_pipeline.registry import runs

FLOW = "train-and-promote"
HEARTBEAT = "prefect.flow-run.heartbeat"
MISSED = 3
"""Heartbeats that may fail to come before a run counts as dead."""
LONGEST_START = timedelta(hours=1)
"""The longest time from the submission of a run to its start."""
GONE = "The run's process is gone."

_PLACE = "mobilenet-pipeline.workspace"
"""The label with machine and folder of a flow run."""
_STARTED = (StateType.RUNNING, StateType.CANCELLING)
_PAGE = 200


def silence() -> timedelta:
    """Return the time without a heartbeat after which a flow run counts as dead."""
    return timedelta(seconds=MISSED * (get_current_settings().flows.heartbeat_frequency or 180))


def close_dead(recipe: str, alone: bool, own: UUID | None = None) -> list[str]:
    """Mark the recipe's flow runs whose process is gone as crashed, and return their names.

    `alone` says that this process holds the recipe's lock in this workspace, so that no other run here has a process.
    A run elsewhere is dead after `silence`. `own` is the flow run of this process.
    """
    with get_client(sync_client=True) as client:
        dead = [
            run
            for run in _find(client, state=[*_STARTED, StateType.PENDING])
            if run.parameters.get("recipe") == recipe and run.id != own and _is_dead(client, run, alone)
        ]
        for run in dead:
            cancelled = run.state_type == StateType.CANCELLING
            client.set_flow_run_state(
                run.id, Cancelled(message=GONE) if cancelled else Crashed(message=GONE), force=True
            )
        return [run.name for run in dead]


def give_way(own: UUID) -> str | None:
    """Return why the flow run `own` has to be skipped for a newer one, None if it may go.

    Of several late runs of a schedule, the newest goes. Those that have not started are cancelled.
    """
    with get_client(sync_client=True) as client:
        return _newer(client, client.read_flow_run(own))


def take_turn(own: UUID) -> str | None:
    """Return why the flow run `own` has to be skipped for an earlier one of its deployment, None if it may go.

    The server keeps the workspace of a run that goes, for `close_dead`.
    """
    with get_client(sync_client=True) as client:
        if reason := _earlier(client, client.read_flow_run(own)):
            return reason
        client.update_flow_run_labels(own, {_PLACE: runs.place()})
        return None


def is_over(flow_run: str) -> bool:
    """Return whether a flow run has ended; False if the server does not know it."""
    with get_client(sync_client=True) as client:
        return any(run.state and run.state.is_final() for run in _find(client, id=[flow_run]))


def _newer(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """Return a sentence if a newer run of the schedule was due when this run was taken up.

    The late runs between the two are cancelled.
    """
    due = run.expected_start_time
    if not run.auto_scheduled or not run.deployment_id or not due:
        return None
    # What falls due while this process starts is not late: otherwise a schedule that is quicker than the start of a
    # process would skip every run.
    window, deployment = (due, _taken_up(client, run)), [run.deployment_id]
    found = _find(client, due=window, deployment_id=deployment)
    rivals = [other for other in found if other.auto_scheduled and other.id != run.id]
    goes = next((other for other in rivals if other.state_type != StateType.CANCELLED), None)
    if goes is None:
        return None
    while late := [
        other
        for other in _find(client, due=window, state=[StateType.SCHEDULED], deployment_id=deployment)
        if other.auto_scheduled and other.id not in (goes.id, run.id)
    ]:
        for other in late:
            client.set_flow_run_state(other.id, Cancelled(message=_instead(other, goes)), force=True)
    return _instead(run, goes)


def _instead(run: FlowRun, goes: FlowRun) -> str:
    times = (f"{due:%Y-%m-%d %H:%M} UTC" for each in (run, goes) if (due := each.expected_start_time))
    return "this run was due at {}; the run due at {} goes instead.".format(*times)


def _earlier(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """Return a sentence if a run of the deployment that started before this one is in progress."""
    if not run.deployment_id:
        return None
    for other in _find(client, deployment_id=[run.deployment_id], state=[*_STARTED]):
        if other.start_time and run.start_time and (other.start_time, other.id) < (run.start_time, run.id):
            place = other.labels.get(_PLACE, "another workspace")
            return f"{other.name}, a run of the same deployment, is in progress in {place}; wait until it ends."
    return None


def _is_dead(client: SyncPrefectClient, run: FlowRun, alone: bool) -> bool:
    """Return whether the process of a pending or started run is gone."""
    if alone and run.labels.get(_PLACE) == runs.place():
        return True
    limit = LONGEST_START if run.state_type == StateType.PENDING else silence()
    return datetime.now(UTC) - _last_sign(client, run) > limit


def _last_sign(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """Return the time of the run's last heartbeat, or of its state if it has had none."""
    since = run.state.timestamp if run.state else datetime.now(UTC)
    wanted = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
        "occurred": {"since": since.isoformat(), "until": datetime.now(UTC).isoformat()},
        "order": "DESC",
    }
    events = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1}).json()["events"]
    return max([since, *(datetime.fromisoformat(event["occurred"]) for event in events)])


def _taken_up(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """Return when a runner or worker submitted the run."""
    submitted: list[State[Any]] = [
        state for state in client.read_flow_run_states(run.id) if state.type == StateType.PENDING
    ]
    return min((state.timestamp for state in submitted), default=run.start_time or datetime.now(UTC))


def _find(
    client: SyncPrefectClient,
    *,
    state: list[StateType] | None = None,
    due: tuple[datetime, datetime] | None = None,
    **one_of: Sequence[object],
) -> list[FlowRun]:
    """Return flow runs, the last that is due first; at most one page."""
    wanted: dict[str, Any] = {name: {"any_": list(values)} for name, values in one_of.items()}
    if state:
        wanted["state"] = {"type": {"any_": state}}
    if due:
        wanted["expected_start_time"] = dict(zip(("after_", "before_"), due, strict=True))
    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": [FLOW]}}),
        flow_run_filter=FlowRunFilter.model_validate(wanted),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_PAGE,
    )
