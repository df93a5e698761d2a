"""Who made which version champion, when and why: a line an event, never rewritten."""

import getpass
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mobilenet_pipeline import layout
from mobilenet_pipeline.config import Recipe

What = Literal["promoted", "rolled back", "found", "approved", "rejected"]
START = "0" * 64


class HistoryError(ValueError):
    """The record is not what was written."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a version of the registered model.

    `who` is "the gate" or a person's name; `before` and `after` are the champion's versions; `run` is the MLflow run
    that trained `version`, `accuracy` what it reached on the test images, `verdict` the SHA-256 of the verdict.json
    that a promotion rests on.
    """

    what: What
    version: str
    who: str
    why: str
    before: str | None
    after: str | None
    run: str
    accuracy: float
    at: str
    verdict: str | None = None

    @property
    def makes_champion(self) -> bool:
        """Whether it made `version` champion."""
        return self.what in ("promoted", "rolled back", "found")


def append(
    recipe: Recipe,
    what: What,
    version: str,
    why: str,
    before: str | None,
    after: str | None,
    run: str,
    accuracy: float,
    who: str,
    workspace: Path = Path("."),
    verdict: str | None = None,
) -> Event:
    """Add an event to the end of the record. Each line holds the hash of the one before: a change in between shows."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    event = Event(what, version, who, why, before, after, run, accuracy, at, verdict)
    path = layout.history_path(recipe, workspace)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    chain = _hash(lines[-1]) if lines else START
    layout.append_line(path, json.dumps({**asdict(event), "previous": chain}, ensure_ascii=False))
    return event


def read(recipe: Recipe, workspace: Path = Path(".")) -> list[Event]:
    """All events, the oldest first. Raises HistoryError naming the line that is damaged or was changed afterwards."""
    path = layout.history_path(recipe, workspace)
    if not path.exists():
        return []
    events, chain = [], START
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found = json.loads(line)
            previous = found.pop("previous")
            events.append(Event(**found))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HistoryError(f"{path}, line {number} is damaged: {line[:80]!r}; restore the file") from None
        if previous != chain:
            raise HistoryError(
                f"{path}: line {number} does not follow line {number - 1}, one of them was changed or taken out; "
                "restore the file"
            )
        chain = _hash(line)
    return events


def champions(recipe: Recipe, workspace: Path = Path(".")) -> list[Event]:
    """The events that made a version champion, the oldest first."""
    return [event for event in read(recipe, workspace) if event.makes_champion]


def person() -> str:
    """The name of whoever is at the keyboard."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
