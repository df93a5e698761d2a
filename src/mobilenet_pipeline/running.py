"""One at a time: whatever changes who is champion holds the recipe meanwhile."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline import layout
from mobilenet_pipeline.config import Recipe


class BusyError(ValueError):
    """Another process holds the recipe."""


@contextmanager
def only_run(recipe: Recipe, workspace: Path = Path(".")) -> Iterator[str | None]:
    """Hold the recipe for as long as the `with` body; gives a sentence instead where another process holds it.

    The lock is the kernel's: it is gone with the process that held it, however that one ended.
    """
    path = layout.report_folder(recipe, workspace) / ".running"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield f"a run of {recipe.name} is in progress ({file.read().strip() or 'just started'}); one at a time."
            return
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        file.flush()
        yield None


@contextmanager
def alone(recipe: Recipe, workspace: Path = Path(".")) -> Iterator[None]:
    """The same, for a person's command. Raises BusyError with the sentence."""
    with only_run(recipe, workspace) as other:
        if other:
            raise BusyError(other)
        yield
