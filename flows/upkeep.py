"""What the operations need of Prefect: its settings and server for `doctor`, and its old flow runs for `gc`."""

from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

from flows import server
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations.doctor import Finding
from mobilenet_pipeline.operations.gc import Leftover
from mobilenet_pipeline.system import ports
from mobilenet_pipeline.workspace.files import shown

_PAGE = 200


def check_prefect() -> Iterator[Finding]:
    """Check that the server of Prefect's settings answers, and that its version is this client's."""
    import prefect

    server.prepare(quiet=True)
    address = server.connect()
    if address is None:
        yield Finding("Prefect", "ok", f"version {prefect.__version__}, no server runs; `run` starts one of its own")
        return
    version = ports.ask(f"{address}/admin/version")
    if version == prefect.__version__:
        yield Finding("Prefect", "ok", f"the server at {shown(address)} has version {version}")
    else:
        sentence = f"the server at {shown(address)} has version {version}, this client {prefect.__version__}"
        yield Finding("Prefect", "warn", sentence, "install the same version on both sides")


def leftovers(recipe: Recipe, keep: int) -> list[Leftover]:
    """Return the recipe's finished flow runs except the `keep` newest of each flow.

    Returns none if no Prefect server answers: a temporary one is not started for that.
    """
    server.prepare(quiet=True)
    if server.connect() is None:
        return []
    from prefect import get_client

    with get_client(sync_client=True) as client:
        newest_first = [run for run in _finished(client) if run.parameters.get("recipe") == recipe.name]
    of_flow: dict[Any, list[Any]] = {}
    for run in newest_first:
        of_flow.setdefault(run.flow_id, []).append(run)
    surplus = [run for runs in of_flow.values() for run in runs[keep:]]
    return [Leftover("Prefect", f"flow run {run.name}", None, partial(_delete, run.id)) for run in surplus]


def _finished(client: Any) -> Iterator[Any]:
    """Yield the runs of this project's flows that have ended, the newest first."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.alerts import FLOWS

    ended = FlowRunFilter.model_validate({"state": {"type": {"any_": ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]}}})
    ours = FlowFilter.model_validate({"name": {"any_": FLOWS}})
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_filter=ours,
            flow_run_filter=ended,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_PAGE,
            offset=offset,
        )
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def _delete(run_id: UUID) -> None:
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.delete_flow_run(run_id)
        except ObjectNotFound:  # somebody else was faster
            return
