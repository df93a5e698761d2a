"""The history of a registered model: one line an event, never rewritten."""

import getpass
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import files, paths, records
from mobilenet_pipeline.workspace.paths import HERE
from mobilenet_pipeline.workspace.records import RecordError

What = Literal["promoted", "rolled back", "found", "approved", "rejected"]
START = "0" * 64


class HistoryError(RecordError):
    """The history file is damaged or was changed."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a version of the registered model.

    `who` is "the gate" or a person's name; `before` and `after` are the champion's versions; `run` is the MLflow run
    that trained `version`, `accuracy` its test accuracy, `at` an ISO 8601 time, and `verdict` the SHA-256 of the
    verdict.json behind a promotion. `artefact` is the SHA-256 of the version's artefact; `withdraws` is that of the
    artefact that no run may promote from then on. Both are None in lines from before they were recorded.
    """

    what: What
    version: str
    who: str
    why: str
    before: str | None
    after: str | None
    run: str
    accuracy: float
    at: str = field(default_factory=files.now)
    verdict: str | None = None
    artefact: str | None = None
    withdraws: str | None = None

    @property
    def makes_champion(self) -> bool:
        """Whether the event made `version` champion."""
        return self.what in ("promoted", "rolled back", "found")


def append(recipe: Recipe, event: Event, workspace: Path = HERE) -> None:
    """Add an event to the end of the history. Each line holds the hash of the line before, so that changes show.

    Raises OSError if it cannot be written; the history is then as it was.
    """

    def next_line(lines: list[str]) -> str:
        chain = _hash(lines[-1]) if lines else START
        return json.dumps({**asdict(event), "previous": chain}, ensure_ascii=False)

    records.append(paths.history_path(recipe, workspace), next_line, parse)


def read(recipe: Recipe, workspace: Path = HERE, copy: bool = False) -> list[Event]:
    """Return all events, the oldest first.

    With `copy`, this workspace's copy counts while the shared records do not answer. Raises HistoryError, naming the
    line that is damaged or was changed, and what `records.lines` raises.
    """
    path = paths.history_path(recipe, workspace)
    return parse(path, records.lines(path, copy, parse))


def parse(path: Path, lines: list[str]) -> list[Event]:
    """Return the events in the `lines` of a history, which is at `path`. Raises HistoryError like `read`."""
    events, chain = [], START
    for number, line in enumerate(lines, start=1):
        try:
            document = json.loads(line)
            previous = document.pop("previous")
            events.append(Event(**document))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HistoryError(f"{path}, line {number} is damaged: {line[:80]!r}; restore the file") from None
        if previous != chain:
            gap = (
                f"line {number} does not follow line {number - 1}; one of them"
                if events[1:]
                else "what was before line 1"
            )
            raise HistoryError(f"{path}: {gap} was changed or removed: restore the file")
        chain = _hash(line)
    return events


def champions(recipe: Recipe, workspace: Path = HERE, copy: bool = False) -> list[Event]:
    """Return the events that made a version champion, the oldest first."""
    return [event for event in read(recipe, workspace, copy) if event.makes_champion]


def withdrawn(recipe: Recipe, workspace: Path = HERE, copy: bool = False) -> dict[str, str]:
    """Return the reason for each artefact (SHA-256) that people have withdrawn, whatever a registry remembers of it.

    An artefact that became champion again by a person's decision is not withdrawn any more.
    """
    reasons: dict[str, str] = {}
    for event in read(recipe, workspace, copy):
        if event.withdraws:
            reasons[event.withdraws] = f"{event.what} by {event.who}: {event.why}"
        if event.what in ("rolled back", "found") and event.artefact:
            reasons.pop(event.artefact, None)
    return reasons


def person() -> str:
    """Return the user name of the person at the keyboard."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
