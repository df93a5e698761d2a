"""Gauges of the pipeline for Prometheus, as a text file that its node exporter collects."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import files, history, paths
from mobilenet_pipeline.workspace.paths import HERE

SETTING = "MOBILENET_PIPELINE_TEXTFILES"
"""The variable with the folder that the node exporter collects; the recipe's reports by default."""

Outcome = Literal["succeeded", "failed"]


def note_run(recipe: Recipe, outcome: Outcome, seconds: float, workspace: Path = HERE) -> None:
    """Remember how a run ended and how long it took, and write the gauges."""
    path = _last_runs(recipe, workspace)
    files.write_json(path, _read(path) | {outcome: {"at": time.time(), "seconds": seconds}})
    write(recipe, workspace)


def last_run(recipe: Recipe, workspace: Path = HERE) -> tuple[str, str] | None:
    """Return how the last run in this workspace ended, and when (ISO 8601, UTC); None before the first."""
    ended = {run["at"]: outcome for outcome, run in _read(_last_runs(recipe, workspace)).items()}
    if not ended:
        return None
    return ended[max(ended)], datetime.fromtimestamp(max(ended), UTC).isoformat(timespec="seconds")


def write(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Write the gauges of runs, verdict, champion and drift, from the recipe's documents; return the path.

    Raises OSError if the file cannot be written, and HistoryError if the history is damaged.
    """
    registry, reports = CollectorRegistry(), paths.report_folder(recipe, workspace)
    gauges: dict[str, Gauge] = {}

    def gauge(name: str, text: str, **labels: str) -> Gauge:
        if name not in gauges:
            gauges[name] = Gauge(f"mobilenet_pipeline_{name}", text, ["recipe", *labels], registry=registry)
        return gauges[name].labels(recipe.name, *labels.values())

    for outcome, run in _read(_last_runs(recipe, workspace)).items():
        gauge("run_timestamp_seconds", "When the last run ended.", outcome=outcome).set(run["at"])
        gauge("run_duration_seconds", "How long the last run took.", outcome=outcome).set(run["seconds"])
    events = history.read(recipe, workspace, copy=True)
    verdict = _read(reports / "verdict.json")
    if verdict:
        # By hash: the clock may have been set back, and version numbers start again in another registry.
        artefact = verdict.get("artefacts", {}).get(verdict["winner"])  # earlier versions recorded no artefacts
        decided = {hash_ for event in events for hash_ in (event.artefact, event.withdraws)}
        waits = verdict["promote"] and bool(artefact) and artefact not in decided
        gauge("verdict_passed", "Whether the gate let the last winner pass.").set(verdict["promote"])
        gauge("waiting_for_approval", "Whether a version waits for a person.").set(waits)
    if events and (champion := events[-1].after):
        gauge("champion_info", "The champion's version.", version=champion).set(1)
        # Another workspace may have promoted it.
        if since := next((event for event in reversed(events) if event.makes_champion), None):
            gauge("champion_since_timestamp_seconds", "When it became champion.").set(_seconds(since.at))
            gauge("champion_test_accuracy_ratio", "Its accuracy on the test images.").set(since.accuracy)
    watched = _read(reports / "monitoring.json")
    if watched:
        gauge("monitoring_timestamp_seconds", "When answers were compared last.").set(_seconds(watched["at"]))
        for alert in watched["drift"]:
            gauge("drift_open", "Whether an alert of the monitoring is open.", cause=alert["cause"]).set(1)
    folder = Path(os.environ.get(SETTING) or reports)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mobilenet_pipeline_{recipe.name}.prom"
    write_to_textfile(str(path), registry)
    return path


def _last_runs(recipe: Recipe, workspace: Path) -> Path:
    return paths.report_folder(recipe, workspace) / "last_runs.json"


def _read(path: Path) -> dict[str, Any]:
    """Return a document, empty if there is none yet or it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _seconds(time_: str) -> float:
    """Return the POSIX seconds of an ISO 8601 time."""
    return datetime.fromisoformat(time_).timestamp()
