"""From the findings of windows to alerts: several windows before an alarm, one alert for a cause, a cool-down. Pure.

A quantity gives an alarm if it has drifted in the newest window of a scale and in enough of the windows before. All
quantities of one cause share an alert. The alert closes when none of them has drifted in the newest windows of every
scale that gave an alarm. If the same quantities drift again within the cool-down, their alert opens again and nobody is
told again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.monitoring.comparisons import Finding, drifted
from mobilenet_pipeline.monitoring.windows import Scale

KEPT_WINDOWS, KEPT_ALERTS = 200, 50
"""The numbers of windows and of closed alerts that a state keeps, for pictures and people."""


@dataclass(frozen=True)
class Window:
    """A finished window: POSIX seconds of start and end, number of images, and what has drifted, by test and cause."""

    scale: str
    start: float
    end: float
    images: int
    drifted: dict[str, str]


@dataclass(frozen=True)
class Alert:
    """Drift of one cause. Times are POSIX seconds; `closed_at` is None while it is open.

    `sentences` has a sentence for each quantity, by test. `scales` are those that gave an alarm. `training` says how
    the training was started that the recipe asks for; None if none was.
    """

    id: str
    cause: str
    version: str
    raised_at: float
    scales: list[str]
    sentences: dict[str, str]
    closed_at: float | None = None
    closed_because: str | None = None
    training: str | None = None


@dataclass(frozen=True)
class Change:
    """An alert that was raised or closed, of which people are told."""

    what: Literal["raised", "closed"]
    alert: Alert


@dataclass(frozen=True)
class State:
    """What the monitoring of a version remembers.

    `since` is the start of the unfinished window of each scale. `proposed`: people were told that it is worse in
    service, and it still is.
    """

    version: str
    since: dict[str, float] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    proposed: bool = False

    @property
    def open(self) -> list[Alert]:
        """The open alerts, the oldest first."""
        return [alert for alert in self.alerts if alert.closed_at is None]


def begin(state: State | None, version: str, now: float) -> tuple[State, list[Change]]:
    """Return the state for `version`: the given one, or an empty one if another version is champion now.

    The new champion has another reference, so the alerts on the old one close.
    """
    if state is None:
        return State(version), []
    if state.version == version:
        return state, []
    because = f"version {version} is champion now"
    closed = [replace(alert, closed_at=now, closed_because=because) for alert in state.open]
    alerts = [next((one for one in closed if one.id == alert.id), alert) for alert in state.alerts]
    return State(version, alerts=alerts[-KEPT_ALERTS:]), [Change("closed", alert) for alert in closed]


def after_window(
    state: State, scale: Scale, window: tuple[float, float, int], findings: Sequence[Finding], limits: Monitoring
) -> tuple[State, list[Change]]:
    """Return the state after a window (start, end, number of images) of this scale, and what people must be told."""
    start, end, images = window
    found = {finding.test: finding for finding in drifted(findings)}
    entry = Window(scale.name, start, end, images, {test: finding.cause for test, finding in found.items()})
    windows = [*state.windows, entry]
    recent = _recent(windows, scale.name, limits.windows)
    alarms = {
        test: finding
        for test, finding in found.items()
        if sum(test in one.drifted for one in recent) >= limits.drifted_windows
    }
    alerts, changes = list(state.alerts), []
    for cause in dict.fromkeys(finding.cause for finding in alarms.values()):
        sentences = {test: one.sentence for test, one in alarms.items() if one.cause == cause}
        known = _known(alerts, cause, sentences, state.version, end - limits.cool_down_hours * 3600)
        alert = known or Alert(f"{state.version}-{cause}-{int(end)}", cause, state.version, end, [], {})
        alert = replace(
            alert,
            scales=list(dict.fromkeys([*alert.scales, scale.name])),
            sentences={**alert.sentences, **sentences},
            closed_at=None,
            closed_because=None,
        )
        alerts = [*(one for one in alerts if one.id != alert.id), alert]
        if known is None:
            changes.append(Change("raised", alert))
    for alert in [alert for alert in alerts if alert.closed_at is None and alert.cause not in _causes(alarms)]:
        if _is_over(alert, windows, limits.windows):
            closed = replace(alert, closed_at=end, closed_because=f"no drift in {limits.windows} windows")
            alerts = [closed if one.id == alert.id else one for one in alerts]
            changes.append(Change("closed", closed))
    since = {**state.since, scale.name: end}
    return replace(state, since=since, windows=_kept(windows, limits), alerts=alerts[-KEPT_ALERTS:]), changes


def _known(alerts: Sequence[Alert], cause: str, tests: Collection[str], version: str, since: float) -> Alert | None:
    """Return the open alert of the cause, or one that was closed after `since` and knows all of these quantities."""
    for alert in reversed(alerts):
        if (alert.cause, alert.version) == (cause, version):
            again = alert.closed_at is not None and alert.closed_at > since and {*tests} <= alert.sentences.keys()
            if alert.closed_at is None or again:
                return alert
    return None


def _causes(alarms: dict[str, Finding]) -> set[str]:
    return {finding.cause for finding in alarms.values()}


def _is_over(alert: Alert, windows: Sequence[Window], count: int) -> bool:
    """Return whether the newest windows of every scale of the alert are without drift of its cause."""
    recent = [_recent(windows, scale, count) for scale in alert.scales]
    return all(
        len(part) == count and not any(alert.cause in window.drifted.values() for window in part) for part in recent
    )


def _recent(windows: Sequence[Window], scale: str, count: int) -> list[Window]:
    return [window for window in windows if window.scale == scale][-count:]


def _kept(windows: Sequence[Window], limits: Monitoring) -> list[Window]:
    """Return the newest windows, and of each scale as many as an alarm looks at."""
    scales = {window.scale for window in windows}
    needed = {id(window) for scale in scales for window in _recent(windows, scale, limits.windows)}
    return [
        window for place, window in enumerate(windows) if place >= len(windows) - KEPT_WINDOWS or id(window) in needed
    ]
