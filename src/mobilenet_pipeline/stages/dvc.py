"""Call DVC as a child process, also several at the same time."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from mobilenet_pipeline.system import process

LOCK_SECONDS = 10.0
"""Longer than DVC holds the lock of its list of readers and writers."""
COMMAND = (sys.executable, "-P", "-m", "dvc", "--wait-for-lock")


def run(*words: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of DVC, whatever comes of it, and return it with its output.

    An exception, such as that of Ctrl-C, lets DVC release its locks first. Raises subprocess.TimeoutExpired if it takes
    longer than `seconds`.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, *words], env=environment(None), start_new_session=True, **pipes) as child:
        try:
            output, errors = child.communicate(timeout=seconds)
        except BaseException:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=process.GRACE_SECONDS)
            child.kill()
            raise
    return subprocess.CompletedProcess(child.args, child.returncode, output, errors)


def started(
    *words: str, env: Mapping[str, str] | None = None, grace: float = process.GRACE_SECONDS
) -> AbstractContextManager[process.Leashed]:
    """Run a command of DVC during a `with` body; its output is a pipe.

    DVC ends as by Ctrl-C, so that it releases its locks; the command of its stage gets SIGTERM.
    """
    command = [*COMMAND, *words]
    return process.leashed(command, env or environment(None), grace, signal.SIGINT, stdout=subprocess.PIPE)


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
    readers and writers, which DVC holds for moments only. With DVC's setting `hardlink_lock`, a process that is killed
    leaves its lock: that of the list is removed after `LOCK_SECONDS`, the other one is not waited for.
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


def left_lock() -> str | None:
    """Return a sentence if a lock of DVC's files outlives its process, which DVC would wait for until next year.

    One by hard links, as of DVC's setting `hardlink_lock`, may do so; its file has a second name while it is held.
    Whose it is, DVC does not write down. So this is one that no DVC of this machine and workspace releases within
    `LOCK_SECONDS`; there it stays, because DVC of another machine that shares the workspace may have it.
    """
    path, deadline = Path(".dvc/tmp/lock"), time.monotonic() + LOCK_SECONDS
    claim = _claim(path)
    while claim and claim == _claim(path) and not any(map(_works_here, psutil.process_iter())):
        if time.monotonic() > deadline:
            return (
                f"{path} is the lock of a DVC process that was killed, or that works here from another machine; if "
                "there is none, delete the file"
            )
        time.sleep(0.1)
    return None


def _claim(path: Path) -> tuple[int, int] | None:
    """Return what tells one process's lock from the next one's; None if nobody has it, or if it ends by itself."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns) if found.st_nlink > 1 else None


def is_dvc(one: psutil.Process) -> bool:
    """Return whether this is a living process of DVC."""
    try:
        return one.status() != psutil.STATUS_ZOMBIE and any("dvc" in word for word in one.cmdline())
    except psutil.Error:
        return False


def _works_here(one: psutil.Process) -> bool:
    """Return whether this is DVC in this workspace; one of another user may be."""
    try:
        return is_dvc(one) and Path.cwd() in (here := Path(one.cwd()), *here.parents)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


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
