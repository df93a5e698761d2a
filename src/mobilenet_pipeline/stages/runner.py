"""Run a DVC stage as a child process: stream its output, time it, and end it with this process."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from mobilenet_pipeline.config import CANDIDATES, Recipe
from mobilenet_pipeline.system.process import leashed

_REDRAW_SECONDS = 5.0  # between two states of a progress bar, which redraws its line ten times a second
_LAST_LINES = 40
# TensorFlow's libraries write this before their log level is set.
_NOISE = re.compile(
    r"[IWE]0000 \S+ +\d+ \S+\.cc:|WARNING: All log messages before absl|To enable the following instr"
    r"|INFO: Created TensorFlow Lite"
)
_LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by")


class StageFailed(RuntimeError):
    """A stage failed. `exit_code` is the stage's own, or DVC's if the stage did not run; `lines` are its last lines."""

    def __init__(self, name: str, exit_code: int, lines: list[str]) -> None:
        super().__init__(name, exit_code, lines)  # pickle calls the class with these arguments again
        self.name, self.exit_code, self.lines = name, exit_code, lines

    def __str__(self) -> str:
        return f"stage {self.name} failed (exit code {self.exit_code}): {self.cause}"

    @property
    def cause(self) -> str:
        """The stage's error message: its lines from `error:` on, or its last line."""
        lines = self.lines
        if any(line.startswith("ERROR: failed to reproduce") for line in lines):
            lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("ERROR: failed to reproduce"))]
        starts = [index for index, line in enumerate(lines) if line.lower().startswith("error:")]
        message = lines[starts[-1] :] if starts else lines[-1:]
        return "\n".join(message).partition(":")[2].strip() if starts else "\n".join(message) or "it printed nothing"


@dataclass(frozen=True)
class StageResult:
    """The outcome of a stage, and its wall and CPU seconds in this run.

    "restored" means that DVC's cache had the outputs of an earlier run.
    """

    name: str
    outcome: Literal["ran", "restored", "unchanged"]
    wall_seconds: float
    cpu_seconds: float

    @property
    def changed(self) -> bool:
        """Whether the outputs may have changed."""
        return self.outcome != "unchanged"


def data_stages(recipe: Recipe) -> list[str]:
    """Return the stages that ingest and validate the recipe's dataset."""
    return [f"ingest@{recipe.name}", f"validate@{recipe.name}"]


def train_stages(recipe: Recipe) -> list[str]:
    """Return the stages that train the recipe's candidates."""
    return [f"train@{recipe.name}-{candidate}" for candidate in CANDIDATES]


def stage_names(recipe: Recipe) -> list[str]:
    """Return the recipe's stages, in the order in which they run."""
    scored = [f"{stage}@{recipe.name}-{name}" for name in CANDIDATES for stage in ("export", "evaluate")]
    return data_stages(recipe) + train_stages(recipe) + scored


def stale(names: Iterable[str]) -> set[str]:
    """Return the stages with outdated outputs. Raises StageFailed if DVC fails."""
    _clear_half_written_lock()
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "status", "--json", *names]
    process = subprocess.run(command, env=_environment(None), capture_output=True, text=True, check=False)
    if process.returncode:
        lines = [line.rstrip() for line in process.stderr.splitlines() if line.strip()]
        raise StageFailed("dvc status", process.returncode, ["error: " + "\n".join(lines)])
    return set(json.loads(process.stdout))


def run_stage(
    name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None = None, force: bool = False
) -> StageResult:
    """Bring one stage up to date with `dvc repro --single-item`.

    `on_line` is called with every line that the stage writes. `env` is added to the child's environment. `force` runs
    the stage even if nothing changed. The seconds are those of the child and all its descendants. Raises StageFailed if
    the stage fails. An exception from `on_line` or from a signal handler ends the child first.
    """
    _clear_half_written_lock()
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    lines: list[str] = []
    started = time.monotonic()
    with leashed([*command, *["--force"] * force], _environment(env), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in _lines(child.stdout):
            if _NOISE.match(line):
                continue
            lines.append(line)
            on_line(line)
    if child.returncode:
        raise StageFailed(name, _stage_exit_code(lines, child.returncode), lines[-_LAST_LINES:])
    return StageResult(name, _outcome(name, lines), time.monotonic() - started, child.cpu_seconds)


def may_pass_again(failure: BaseException) -> bool:
    """Return whether the stage may succeed on another try.

    It may if a server did not answer or the DVC repository was locked.
    """
    if not isinstance(failure, StageFailed):
        return False
    locked = any(sign in line for line in failure.lines for sign in _LOCKED)
    return locked or failure.exit_code == os.EX_TEMPFAIL


def _clear_half_written_lock(path: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Remove DVC's list of readers and writers if it is not JSON.

    If DVC is killed while it writes the list, it cannot start again.
    """
    for wait in (1.0, 0.0):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(wait)  # another process may be writing the list now
    path.unlink(missing_ok=True)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return this process's environment and `extra`, for DVC.

    DVC runs the stages' commands in a shell, where `python` must be this Python.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1", **(extra or {})}


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines; of a redrawn line, yield one state every few seconds."""
    text = open(stream.fileno(), encoding="utf-8", errors="replace", newline="", closefd=False)  # noqa: SIM115
    shown = time.monotonic()
    for line in text:
        if not line.endswith("\r"):
            yield line.rstrip()
        elif line.strip() and time.monotonic() - shown > _REDRAW_SECONDS:
            shown = time.monotonic()
            yield line.strip()


def _outcome(name: str, lines: list[str]) -> Literal["ran", "restored", "unchanged"]:
    if f"Stage '{name}' didn't change, skipping" in lines:
        return "unchanged"
    return "restored" if any(line.startswith(f"Stage '{name}' is cached - skipping run") for line in lines) else "ran"


def _stage_exit_code(lines: list[str], otherwise: int) -> int:
    """Return the exit code that DVC prints for the stage; its own is always 255."""
    codes = [match[1] for line in lines if (match := re.search(r"^ERROR: .*exited with (-?\d+)$", line))]
    return int(codes[-1]) if codes else otherwise
