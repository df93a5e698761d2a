"""Locks: one run of a recipe at a time, and one decision on its champion at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import paths, records

LOOK_SECONDS = 300.0
"""The longest time that a look of the monitoring waits for another one, which takes seconds."""


@contextmanager
def only_run(recipe: Recipe, workspace: Path = Path(".")) -> Iterator[str | None]:
    """Lock the recipe for a run during the `with` body.

    Yields None, or a sentence if another process has the lock. The kernel frees the lock when its process ends.
    """
    path = paths.report_folder(recipe, workspace) / ".running"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "just started"
            yield f"a run of {recipe.name} is in progress ({holder}); wait until it ends."
            return
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        file.flush()
        yield None


@contextmanager
def only_look(recipe: Recipe, workspace: Path = Path(".")) -> Iterator[None]:
    """Lock the recipe's monitoring during the `with` body; a second look waits for a while.

    A look writes at its end what it has read at its beginning: state and labels. Raises BlockingIOError if another one
    takes longer than `LOOK_SECONDS`.
    """
    path = paths.records_folder(workspace) / f".monitoring-{recipe.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOOK_SECONDS
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BlockingIOError(
                        f"another look at {recipe.name} has been in progress for {LOOK_SECONDS:g} s; end that process "
                        "if it hangs"
                    ) from None
            time.sleep(0.1)
        yield


@contextmanager
def deciding(recipe: Recipe, workspace: Path = Path("."), everywhere: bool = True) -> Iterator[None]:
    """Lock the decision on the recipe's champion during the `with` body, among all workspaces that share records.

    A decision judges, promotes or rolls back, and takes seconds; a second process waits for the lock. Trainings do not
    hold it, so that a rollback is possible during a training. Without `everywhere`, the lock is this workspace's only.
    Raises RecordsAway if the shared records do not answer.
    """
    with records.exclusively(f"deciding-{recipe.name}", workspace, everywhere):
        yield
