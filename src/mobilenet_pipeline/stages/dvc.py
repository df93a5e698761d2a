"""Call DVC as a child process, also several at the same time."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

LOCK_SECONDS = 10.0
"""Longer than DVC holds the lock of its list of readers and writers."""
COMMAND = (sys.executable, "-P", "-m", "dvc", "--wait-for-lock")


def run(*words: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of DVC, whatever comes of it, and return it with its output.

    Raises subprocess.TimeoutExpired if it takes longer than `seconds`.
    """
    return subprocess.run(
        [*COMMAND, *words], env=environment(None), capture_output=True, text=True, timeout=seconds, check=False
    )


@contextmanager
def preparing() -> Iterator[None]:
    """Let one thread or process at a time change this workspace's settings for DVC, in the `with` body."""
    if not Path(".dvc").is_dir():  # the folder alone would make a DVC repository of this one
        yield
        return
    path = Path(".dvc/tmp/mobilenet-pipeline.lock")
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def holding(name: Literal["lock", "rwlock.lock"]) -> Iterator[None]:
    """Hold one of DVC's own locks during the `with` body, which has to be short.

    `lock` is that of its files: DVC releases it while a stage's command runs. `rwlock.lock` is that of its list of
    readers and writers, which DVC holds for moments only. With DVC's setting `hardlink_lock`, a killed process leaves
    its lock behind for a year: that of the list is removed after `LOCK_SECONDS`, the other one is not waited for.
    """
    from dvc.config import Config
    from dvc.lock import make_lock

    folder = str(Path(".dvc/tmp").resolve())
    path, hardlink = os.path.join(folder, name), Config(".dvc")["core"].get("hardlink_lock", False)
    lock = make_lock(path, tmp_dir=folder, hardlink_lock=hardlink)
    held = _acquired(lock)
    if not held and hardlink and name == "rwlock.lock":
        Path(path).unlink(missing_ok=True)
        held = _acquired(lock)
    try:
        yield
    finally:
        if held:
            lock.unlock()


def _acquired(lock: Any) -> bool:
    """Try for `LOCK_SECONDS` to take a lock of DVC; return whether it is held now."""
    from dvc.lock import LockError

    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        with suppress(LockError):
            lock.lock()
            return True
        time.sleep(0.1)
    return False


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return this process's environment and `extra`, for DVC.

    DVC runs the stages' commands in a shell, where `python` must be this Python.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1", **(extra or {})}
