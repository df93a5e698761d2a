"""One at a time: a recipe is run by one process, and its champion decided by one."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline import layout
from mobilenet_pipeline.config import Recipe


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
def deciding(recipe: Recipe, workspace: Path = Path(".")) -> Iterator[None]:
    """Be the only one who judges, promotes or rolls back, for the `with` body; waits while another does.

    That takes seconds. Trainings do not hold it, so that a champion can be rolled back while the next one is trained.
    """
    path = layout.report_folder(recipe, workspace) / ".deciding"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
