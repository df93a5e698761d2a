"""Look at the answers of a recipe's champion: record and reference to findings, alerts and a document."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.config import Monitoring, Recipe
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.monitoring import alarms, answers, comparisons, labels, reference, state, windows
from mobilenet_pipeline.monitoring.alarms import Alert, Change, State
from mobilenet_pipeline.monitoring.answers import Answers, Record
from mobilenet_pipeline.monitoring.windows import Scale
from mobilenet_pipeline.registry import aliases, identity
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.reports import monitoring_figures
from mobilenet_pipeline.workspace import files, paths
from mobilenet_pipeline.workspace.paths import HERE

SHORT, LONG = "short", "long"
LONG_WINDOW = 4
"""A long window lasts at least as long as this many short ones."""


class MonitoringError(ValueError):
    """There is nothing to monitor."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a look has found: the new state, and what people must be told.

    `compared` are the answers that the picture shows beside the reference: those of the newest long window, or of the
    short windows that alarms look at if one of them has drifted or no long one is finished.
    """

    state: State
    changes: list[Change]
    compared: Answers


@dataclass(frozen=True, eq=False)
class Look:
    """A look at the POSIX second `at`, with document and picture; nothing is written before `keep`.

    `labels` are all labels if the look has brought new ones, and none if it has not.
    The document's `changes` are what people must be told: alerts that were raised or closed, and a proposal.
    """

    recipe: Recipe
    at: float
    state: State
    document: dict[str, Any]
    picture: bytes
    labels: list[labels.Label]


def scales(limits: Monitoring, classes: int) -> list[Scale]:
    """Return the two lengths of windows: short ones see large changes early, long ones see small changes."""
    seconds = 60.0 * limits.window_minutes
    return [
        Scale(SHORT, seconds, limits.window_images),
        Scale(LONG, LONG_WINDOW * seconds, max(limits.window_images, limits.images_per_class * classes)),
    ]


def see(record: Record, known: Reference, before: State, now: float, limits: Monitoring) -> Seen:
    """Return what the record says of the version of `before`, whose reference is `known`. Pure."""
    own = record.answers.of(before.version)
    # Failed requests too: if all of them fail, there are no images, and still something to see.
    moments = np.sort(np.concatenate([own.at, record.failed_at]))
    after, changes = before, list[Change]()
    for scale in scales(limits, len(known.class_names)):
        first = float(own.at[0]) if len(own) else now
        since = after.since.get(scale.name, math.floor(first / scale.seconds) * scale.seconds)
        for start, end in windows.cut(moments, since, now, scale):
            part = own.between(start, end)
            found = comparisons.compare(part, record.failures(start, end), known, limits)
            after, told = alarms.after_window(after, scale, (start, end, len(part)), found, limits)
            changes += told
        after = replace(after, since={scale.name: since, **after.since})
    return Seen(after, changes, own.between(*_shown(after, now, limits)))


def _findings(seen: State, record: Record, known: Reference, limits: Monitoring) -> dict[str, Any]:
    """Return each scale's newest window with its findings, unless the record has lost its answers."""
    own, described = record.answers.of(seen.version), {}
    for window in {window.scale: window for window in seen.windows}.values():
        part, failures = own.between(window.start, window.end), record.failures(window.start, window.end)
        if len(part) or len(failures):
            found = comparisons.compare(part, failures, known, limits)
            described[window.scale] = {
                "from": iso(window.start),
                "to": iso(window.end),
                "images": window.images,
                "findings": [_rounded(asdict(one)) for one in found],
            }
    return described


def _shown(seen: State, now: float, limits: Monitoring) -> tuple[float, float]:
    short, long = ([one for one in seen.windows if one.scale == name] for name in (SHORT, LONG))
    recent = short[-limits.windows :]
    if long and not any(window.drifted for window in recent):
        return long[-1].start, long[-1].end
    return (recent[0].start, recent[-1].end) if recent else (-math.inf, now)


def look(recipe: Recipe, new_labels: Path | None = None, workspace: Path = HERE, now: float | None = None) -> Look:
    """Compare the recorded answers of the champion with its reference, and its labels with its test accuracy.

    Raises MonitoringError if there is no champion, and the errors of reference, labels and state.
    """
    at = datetime.now(UTC).timestamp() if now is None else now
    identity.check(recipe, workspace)
    champion = aliases.with_alias(recipe.registered_model, "champion")
    if champion is None:
        raise MonitoringError(
            f"{recipe.registered_model} has no champion; run `mobilenet-pipeline run --recipe {recipe.name}`"
        )
    known = reference.find(recipe, champion, workspace)
    folder = bento.record_of(recipe.registered_model)
    record = answers.read(folder, champion.name, known.class_names)
    begun, closed = alarms.begin(state.read(recipe, workspace), champion.version, at)
    seen = see(record, known, begun, at, recipe.monitoring)
    all_labels, reading = labels.read(_labels_path(recipe, workspace)), None
    if new_labels:
        all_labels, reading = labels.add(new_labels, all_labels, record.answers, known.class_names)
    accuracy = labels.accuracy(all_labels, champion.version, champion.accuracy, known.rows, recipe.monitoring)
    proposal = labels.proposal(accuracy, champion.version, recipe.name) if accuracy else None
    after = replace(seen.state, proposed=proposal is not None)
    changes = [{"what": one.what, **describe_alert(one.alert)} for one in [*closed, *seen.changes]]
    if accuracy and proposal and not begun.proposed:
        # Its id is the same in a look that is repeated, and another one if the version is found worse again.
        name = f"accuracy-{accuracy.right}-{accuracy.rows}"
        about = {"id": name, "cause": "accuracy", "version": champion.version, "sentence": proposal}
        changes.append({"what": "proposed", **about})
    document = {
        "recipe": recipe.name,
        "registered_model": champion.name,
        "version": champion.version,
        "at": iso(at),
        "reference": {"images": known.rows},
        "record": _describe_record(folder, record, champion),
        "drift": [describe_alert(alert) for alert in seen.state.open],
        "changes": changes,
        "windows": _findings(seen.state, record, known, recipe.monitoring),
        "labels": reading and {**asdict(reading), "sentence": reading.sentence},
        "accuracy": accuracy and _rounded(asdict(accuracy)),
        "proposal": proposal,
    }
    picture = monitoring_figures.draw(
        monitoring_figures.Shown(
            class_names=known.class_names,
            statistics={
                name: (known.statistics[:, i], seen.compared.statistics[:, i]) for i, name in enumerate(known.names)
            },
            confidence=(known.confidence, seen.compared.confidence),
            predicted=(known.predicted, seen.compared.predicted),
            title=_title(recipe, champion, known, seen.compared),
            drifted={test for alert in seen.state.open for test in alert.sentences},
            windows=[(one.scale, one.start, one.end, {*one.drifted.values()}) for one in seen.state.windows],
            days=[(one.day, one.right / one.rows, one.low, one.high) for one in accuracy.days] if accuracy else [],
            promised=champion.accuracy,
            causes=comparisons.CAUSES,
        )
    )
    return Look(recipe, at, after, document, picture, all_labels if reading else [])


def keep(seen: Look, workspace: Path = HERE) -> None:
    """Write state, labels, reports/RECIPE/monitoring.json and its picture. The state comes last."""
    document_path(seen.recipe, workspace).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(document_path(seen.recipe, workspace), seen.document)
    with files.whole(picture_path(seen.recipe, workspace)) as partial:
        partial.write_bytes(seen.picture)
    if seen.labels:
        labels.write(_labels_path(seen.recipe, workspace), seen.labels)
    state.write(seen.recipe, seen.state, workspace)


def with_training(seen: Look, causes: Sequence[str], sentence: str) -> Look:
    """Return the look, in which the open alerts of these causes say how their training was started."""
    alerts = [
        replace(alert, training=sentence) if alert.closed_at is None and alert.cause in causes else alert
        for alert in seen.state.alerts
    ]
    after = replace(seen.state, alerts=alerts)
    return replace(seen, state=after, document=seen.document | {"drift": [describe_alert(one) for one in after.open]})


def needs_training(seen: Look) -> list[str]:
    """Return the causes of open alerts for which the recipe wants a training and none was started.

    Within the cool-down after an alert with a training, none is wanted: the images to learn from are hardly others.
    """
    limits, alerts = seen.recipe.monitoring, seen.state.alerts
    cool = all(one.raised_at <= seen.at - 3600 * limits.cool_down_hours for one in alerts if one.training)
    if not limits.retrain or not cool:
        return []
    return [one.cause for one in seen.state.open if one.cause in comparisons.RETRAINABLE and one.training is None]


def document_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of what the last look found."""
    return paths.report_folder(recipe, workspace) / "monitoring.json"


def picture_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the last look's picture."""
    return paths.report_folder(recipe, workspace) / "monitoring.png"


def _labels_path(recipe: Recipe, workspace: Path) -> Path:
    return state.folder(recipe, workspace) / "labels.csv"


def describe_alert(alert: Alert) -> dict[str, Any]:
    """Return an alert as JSON, with times in ISO 8601 and its sentences in one."""
    return {
        "id": alert.id,
        "cause": alert.cause,
        "version": alert.version,
        "raised_at": iso(alert.raised_at),
        "closed_at": None if alert.closed_at is None else iso(alert.closed_at),
        "closed_because": alert.closed_because,
        "tests": list(alert.sentences),
        "sentence": "; ".join(alert.sentences.values()),
        "training": alert.training,
    }


def iso(seconds: float) -> str:
    """Return a time in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _describe_record(folder: Path, record: Record, champion: Version) -> dict[str, Any]:
    own = record.answers.of(champion.version)
    return {
        "folder": str(folder),
        "answers": len(own),
        "answers_of_other_versions": len(record.answers) - len(own),
        "failed_requests": len(record.statuses),
        "damaged_lines": record.damaged,
        "from": iso(float(own.at[0])) if len(own) else None,
        "to": iso(float(own.at[-1])) if len(own) else None,
    }


def _title(recipe: Recipe, champion: Version, known: Reference, compared: Answers) -> str:
    window = f"{len(compared):,} answers"
    if len(compared):
        first, last = (datetime.fromtimestamp(float(compared.at[i]), UTC) for i in (0, -1))
        window += f", {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    return f"{recipe.name}, version {champion.version}: {window}; reference: {known.rows:,} test images"


def _rounded(value: Any) -> Any:
    """Return the document with four significant digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(np.format_float_positional(value, 4, fractional=False)) if isinstance(value, float) else value
