"""The monitoring as a Prefect flow: events for drift, an artifact with the picture, and a training on request.

Events, for automations that tell people:

- `mobilenet-pipeline.drift.raised` and `mobilenet-pipeline.drift.closed`, once for each alert,
- `mobilenet-pipeline.training.requested`, when drift has started a training,
- `mobilenet-pipeline.rollback.proposed`, when labels begin to show that the champion is worse than at promotion.

Their resource is `mobilenet-pipeline.recipe.RECIPE`. All payloads have `recipe`, `cause`, `sentence`, `version` and
`picture`. Those of alerts also have `raised_at`, `closed_at`, `closed_because`, `tests` and `training`.
"""

import base64
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import flow, get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import DeploymentStatus, State
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.settings import Settings
from prefect.states import Completed

from flows import alerts, artifacts, logs
from flows.training import RecipeName, in_a_sentence, train_and_promote
from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.monitoring import look, state
from mobilenet_pipeline.monitoring.alarms import Alert
from mobilenet_pipeline.monitoring.look import Look
from mobilenet_pipeline.reports import gauges
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import locks

EVENTS = {"raised": alerts.DRIFT, "closed": "mobilenet-pipeline.drift.closed", "proposed": alerts.PROPOSAL}
"""By what has changed."""
REQUESTED = "mobilenet-pipeline.training.requested"
CLOCKS = timedelta(minutes=1)
"""The largest difference between the clocks of this machine and of the server that changes nothing."""
outside: ContextVar[Mapping[str, str] | None] = ContextVar("outside", default=None)
"""The environment of a training that outlives this process: that before this process chose a Prefect server."""


@flow(name="monitor", persist_result=True, result_serializer="json")
@in_a_sentence
def monitor(recipe: str = "digits", labels: str | None = None) -> State:
    """Compare the recorded answers of a recipe's champion with its test images.

    The result is reports/RECIPE/monitoring.json as a dictionary. The final state's message says what is open.

    Args:
        recipe: The section of params.yaml to monitor.
        labels: A CSV file with the columns answer_id and truth.
    """
    environment.prepare()
    logs.set_up(recipe)
    loaded = load_recipe(recipe)
    with locks.only_look(loaded):
        seen = _look(loaded, Path(labels) if labels else None)
    alerts.write_gauges(lambda: gauges.write(loaded))
    publish(loaded, seen)
    message = " ".join(sentences(seen.document))
    get_run_logger().info(message)
    return Completed(message=message, data=seen.document)


# As in `flows.training`: deploying makes the schema again, with the recipes as choices.
monitor.fn.__annotations__["recipe"] = RecipeName


def _look(recipe: Recipe, labels: Path | None) -> Look:
    """Look at the record, tell people what has changed, start a training if the recipe wants one, and keep the look."""
    seen = look.look(recipe, labels)
    # Before the state is written: a killed look is repeated, and Prefect drops an event that it has got minutes before.
    for change in seen.document["changes"]:
        tell(recipe, EVENTS[change["what"]], change)
    causes = look.needs_training(seen)
    if causes and (sentence := start_training(recipe, seen.state.open)):
        seen = look.with_training(seen, causes, sentence)
        for alert in seen.document["drift"]:
            if alert["cause"] in causes:
                tell(recipe, REQUESTED, alert)
    look.keep(seen)
    return seen


def tell(recipe: Recipe, event: str, alert: Mapping[str, Any]) -> None:
    """Emit the event of an alert, or of a proposal. The same alert gives the same event again."""
    known = {key: value for key, value in alert.items() if key not in ("what", "id")}
    closed = str(alert.get("closed_at"))
    emit_event(
        event=event,
        resource={
            "prefect.resource.id": f"mobilenet-pipeline.recipe.{recipe.name}",
            "prefect.resource.name": recipe.name,
            alerts.OF: str(alert["cause"]),
        },
        payload={"recipe": recipe.name, **known, "picture": str(look.picture_path(recipe).resolve())},
        id=uuid5(NAMESPACE_URL, "/".join([event, recipe.registered_model, alert["version"], alert["id"], closed])),
    )


def start_training(recipe: Recipe, open_alerts: Sequence[Alert]) -> str | None:
    """Start a run of the whole pipeline, whose winner must pass the gate, and return how; None while a run goes on.

    A deployment that something serves runs it; otherwise a process of its own, which outlives this one.
    """
    with locks.only_run(recipe) as in_progress:
        if in_progress:
            return None
    name = f"{train_and_promote.name}/{recipe.name}"
    if _is_served(name):
        run: Any = run_deployment(
            name,
            parameters={"recipe": recipe.name, "force": True},
            timeout=0,
            idempotency_key=f"{recipe.name}: {', '.join(sorted(alert.id for alert in open_alerts))}",
            as_subflow=False,
        )
        return f"flow run {run.name} of {name}"
    log = state.folder(recipe) / "training.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # --force: the stages are up to date, and the source may have new images.
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline", "run", "--recipe", recipe.name, "--force"]
    variables = os.environ if (before := outside.get()) is None else before
    kept = {key: value for key, value in variables.items() if not key.startswith("PREFECT__")}
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, env=kept, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return f"process {child.pid}, its output is in {log}"


def _is_served(deployment: str) -> bool:
    """Return whether the server has the deployment, and a worker or a schedule has asked for its runs just now."""
    with get_client(sync_client=True) as client:
        try:
            read = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return False
    # A server that ends leaves the status as it is, and a temporary one never changes it.
    limit = timedelta(seconds=Settings().server.services.foreman.deployment_last_polled_timeout_seconds) + CLOCKS
    recently = read.last_polled is not None and datetime.now(UTC) - read.last_polled < limit
    return read.status == DeploymentStatus.READY and recently


def publish(recipe: Recipe, seen: Look) -> None:
    """Show the look on Prefect's page of the run."""
    picture = base64.b64encode(seen.picture).decode("ascii")
    lines = [f"- {sentence}" for sentence in sentences(seen.document)]
    heading = f"**{recipe.name}, version {seen.document['version']}**"
    figure = f"![answers beside the test images](data:image/png;base64,{picture})"
    create_markdown_artifact(
        "\n".join([heading, "", *lines, "", figure, "", *_table(seen.document)]),
        artifacts.key(recipe.name, "monitoring"),
        f"Answers of {recipe.name} beside its test images",
    )


def _table(document: Mapping[str, Any]) -> Sequence[str]:
    """Return a Markdown table of the newest window of each length; only classes that have drifted."""
    rows = [
        f"| {scale} | {one['test']} | {one['reference']:.4g} | {one['window']:.4g} | {one['effect']:.3g} "
        f"| {one['p']:.2g} | {'**drift**' if one['drifted'] else ''} |"
        for scale, window in document["windows"].items()
        for one in window["findings"]
        if one["drifted"] or not one["test"].startswith("class ")
    ]
    head = [
        "| window | quantity | reference | answers | effect | adjusted p | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows] if rows else []


def sentences(document: Mapping[str, Any]) -> list[str]:
    """Return what people need to know of a look: what is open, the labels, and how much was looked at."""
    record = document["record"]
    found = [
        f"Drift of {alert['cause']} since {alert['raised_at']}: {alert['sentence']}."
        + (f" Training: {alert['training']}." if alert["training"] else "")
        for alert in document["drift"]
    ]
    if not record["answers"]:
        return [*found, f"No answers of version {document['version']} are recorded in {record['folder']} yet."]
    if not found:
        found = [f"No drift in {record['answers']:,} answers of version {document['version']} since {record['from']}."]
    if record["damaged_lines"]:
        found.append(f"Damaged lines of the record, left out: {record['damaged_lines']:,}.")
    if document["labels"]:
        found.append(f"{document['labels']['sentence']}.")
    if accuracy := document["accuracy"]:
        share = accuracy["right"] / accuracy["rows"]
        found.append(
            f"Accuracy {share:.1%} on {accuracy['rows']:,} labelled answers (95 % interval {accuracy['low']:.1%} to "
            f"{accuracy['high']:.1%}), {accuracy['promised']:.1%} on the test images."
        )
    return [*found, *([f"{document['proposal']}."] if document["proposal"] else [])]
