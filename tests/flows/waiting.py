"""What tests ask of processes and servers while they wait for them."""

import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Recorder:
    """A listener that remembers."""

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
    """The stages that really ran, in order."""
    path = workspace / "ran.txt"
    return path.read_text().split() if path.exists() else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def wait_until(holds: Callable[[], Any], seconds: float, told: Callable[[], str] = str) -> Any:
    """What `holds` gives once it is true; fails with `told` when time is up."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"nothing within {seconds} s: {told()}"
        time.sleep(0.1)
    return found


def alive(process: int) -> bool:
    """Whether the process runs; one that is dead and not buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
