"""Call DVC as a child process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "dvc", "--wait-for-lock")


def run(*words: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of DVC, whatever comes of it, and return it with its output.

    Raises subprocess.TimeoutExpired if it takes longer than `seconds`.
    """
    return subprocess.run(
        [*COMMAND, *words], env=environment(None), capture_output=True, text=True, timeout=seconds, check=False
    )


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return this process's environment and `extra`, for DVC.

    DVC runs the stages' commands in a shell, where `python` must be this Python.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1", **(extra or {})}
