"""Helpers of tests that wait for processes and servers, and a listener that records what a run tells it."""

import os
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = float(os.environ.get("PYTEST_TIMEOUT", 900)) / 2
"""Seconds that anything may take in a test. Tests measure progress; this only ends one that hangs.

PYTEST_TIMEOUT, pytest-timeout's own variable, gives a slower machine more.
"""


class Recorder:
    """A listener that records how each step ended, and every line."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.lines: list[str] = []

    def begin(self, step: str) -> None:
        self.ended[step] = "begun"

    def hear(self, step: str, line: str) -> None:
        self.lines.append(line)

    def end(self, step: str, outcome: str) -> None:
        self.ended[step] = outcome


def ran(workspace: Path) -> list[str]:
    """Return the toy stages that really ran, in order."""
    path = workspace / "ran.txt"
    return path.read_text().split() if path.exists() else []


def stamps(workspace: Path) -> list[tuple[str, str, int]]:
    """Return event, stage and process of what the toy stages have stamped, in order."""
    path = workspace / "stamps.txt"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(event, stage, int(process)) for event, stage, process in rows]


def processes(workspace: Path) -> set[int]:
    """Return the processes of the toy stages that have begun."""
    return {process for _, _, process in stamps(workspace)}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Return whether the URL answers with 200."""
    try:
        return bool(urllib.request.urlopen(url, timeout=LIMIT).status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], describe: Callable[[], str] = str) -> Any:
    """Return the condition's value once it is true; fail with `describe` if it is not within `LIMIT`."""
    deadline = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"nothing within {LIMIT} s: {describe()}"
        time.sleep(0.05)
    return value


def read_process(workspace: Path, describe: Callable[[], str] = str) -> int:
    """Wait until a toy stage has started, and return its process id."""
    path = workspace / "process.txt"
    return int(wait_until(lambda: path.exists() and path.read_text(), describe))


def alive(process: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
