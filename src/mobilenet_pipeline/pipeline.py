"""One DVC stage as a child process: streamed, timed, and ended with whoever ordered it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import psutil

    from mobilenet_pipeline.config import Recipe

GRACE_SECONDS = 10.0
"""How long a process that is asked to end may take before it is killed."""

_REDRAW_SECONDS = 5.0  # of a progress bar that redraws its line ten times a second
_LAST_LINES = 40
# What TensorFlow's libraries write before their log level is set.
_NOISE = re.compile(
    r"[IWE]0000 \S+ +\d+ \S+\.cc:|WARNING: All log messages before absl|To enable the following instr"
    r"|INFO: Created TensorFlow Lite"
)
_LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by")


class StageFailed(RuntimeError):
    """A stage ended with an error. `exit_code` is the stage's own where it ran, else DVC's; `lines` are its last."""

    def __init__(self, name: str, exit_code: int, lines: list[str]) -> None:
        super().__init__(name, exit_code, lines)  # what pickle calls it with again
        self.name, self.exit_code, self.lines = name, exit_code, lines

    def __str__(self) -> str:
        return f"stage {self.name} failed (exit code {self.exit_code}): {self.cause}"

    @property
    def cause(self) -> str:
        """What the stage said went wrong: its lines from `error:` on, else the last one before DVC's own."""
        own = self.lines
        if any(line.startswith("ERROR: failed to reproduce") for line in own):
            own = own[: next(i for i, line in enumerate(own) if line.startswith("ERROR: failed to reproduce"))]
        starts = [index for index, line in enumerate(own) if line.lower().startswith("error:")]
        said = own[starts[-1] :] if starts else own[-1:]
        return "\n".join(said).partition(":")[2].strip() if starts else "\n".join(said) or "it said nothing"


@dataclass(frozen=True)
class StageResult:
    """How a stage ended. "restored": DVC had its outputs from an earlier run; the seconds are this run's."""

    name: str
    outcome: Literal["ran", "restored", "unchanged"]
    wall_seconds: float
    cpu_seconds: float

    @property
    def changed(self) -> bool:
        """Whether its outputs may differ from those that were there before."""
        return self.outcome != "unchanged"


def stage_names(recipe: "Recipe") -> list[str]:
    """The recipe's stages, in the order in which they run."""
    from mobilenet_pipeline.config import CANDIDATES

    candidates = [f"{recipe.name}-{candidate}" for candidate in CANDIDATES]
    names = [f"ingest@{recipe.name}", f"validate@{recipe.name}", *(f"train@{candidate}" for candidate in candidates)]
    return names + [f"{stage}@{candidate}" for candidate in candidates for stage in ("export", "evaluate")]


def stale(names: Iterable[str]) -> set[str]:
    """Those of the stages that DVC would run again as things are. Raises StageFailed where DVC cannot tell."""
    _clear_half_written_lock()
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "status", "--json", *names]
    done = subprocess.run(command, env=_environment(None), capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.rstrip() for line in done.stderr.splitlines() if line.strip()]
        raise StageFailed("dvc status", done.returncode, ["error: " + "\n".join(said)])
    return set(json.loads(done.stdout))


def run_stage(
    name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None = None, force: bool = False
) -> StageResult:
    """Bring one stage up to date with `dvc repro --single-item`, telling `on_line` each line as it is written.

    `env` is added to the child's environment; `force` runs the stage even where nothing changed. The seconds are the
    wall and CPU time of the child with all its descendants. Raises StageFailed; whatever `on_line` raises, or a signal
    handler, ends the child first.
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
    """Whether the same stage may succeed on another try: a server that was away, or a repository that was locked."""
    if not isinstance(failure, StageFailed):
        return False
    locked = any(sign in line for line in failure.lines for sign in _LOCKED)
    return locked or failure.exit_code == os.EX_TEMPFAIL


class Leashed(subprocess.Popen[bytes]):
    """A child process; `cpu_seconds` of it and its descendants are known once the `with` body is left."""

    cpu_seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether it has ended. Looks only: `poll` would take away what `leashed` wants to know of it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def leashed(
    command: list[str], env: Mapping[str, str] | None = None, grace: float = GRACE_SECONDS, **streams: Any
) -> Iterator[Leashed]:
    """Run a command for as long as the `with` body, in a session of its own.

    At the end of the body, the command and everything that it started is asked to end, and killed after `grace`
    seconds. So it is when this process dies, however it dies: the child reads a pipe that only this process
    holds open. A body that reads the command's output to its end lets the command finish by itself.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as held, open(writing, "wb") as leash:
        holder = [sys.executable, "-P", "-m", "mobilenet_pipeline.pipeline", str(reading), str(grace), *command]
        child = Leashed(
            holder, env=env, pass_fds=(held.fileno(),), start_new_session=True, stderr=subprocess.STDOUT, **streams
        )
        try:
            yield child
        finally:
            leash.close()
            for _ in child.stdout or ():  # or it might wait for a reader instead of ending
                pass
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            child.cpu_seconds = usage.ru_utime + usage.ru_stime
            if child.stdout:
                child.stdout.close()


def _clear_half_written_lock(path: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Remove DVC's list of readers and writers if it is not JSON: killed while writing, DVC would not start again."""
    for wait in (1.0, 0.0):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(wait)  # perhaps it is being written just now
    path.unlink(missing_ok=True)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """This process's, in which `python` is this Python: DVC runs the stages' commands in a shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1", **(extra or {})}


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come; of a line that is drawn over and over, one state every few seconds."""
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
    """DVC ends with 255 whatever the stage's code was, but says it."""
    codes = [match[1] for line in lines if (match := re.search(r"^ERROR: .*exited with (-?\d+)$", line))]
    return int(codes[-1]) if codes else otherwise


def _hold(leash: int, grace: float, command: list[str]) -> int:
    """Run the command until it ends, `leash` closes or SIGTERM comes, then end whatever it has started."""
    _adopt_orphans()
    child = subprocess.Popen(command)
    asked: set[psutil.Process] = set()
    one_at_a_time = threading.RLock()

    def end() -> None:
        # A training that is asked twice ends without saving, and several may come here: when the leash closes, the
        # command mostly ends before what it has started.
        with one_at_a_time:
            _end_descendants(grace, asked)

    def wait_for_release() -> None:
        os.read(leash, 1)
        end()

    threading.Thread(target=wait_for_release, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end())
    code = child.wait()
    end()
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    """Let descendants whose parent dies become children of this process, so that none is lost. Linux knows how."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end_descendants(grace: float, asked: set["psutil.Process"]) -> None:
    """End all descendants: first by SIGTERM, unless they were `asked` before, after the grace by SIGKILL."""
    import psutil

    deadline = time.monotonic() + grace
    while left := {process for process in psutil.Process().children(recursive=True) if _runs(process)}:
        late = time.monotonic() > deadline
        for process in left if late else left - asked:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        time.sleep(0.05)


def _runs(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE  # dead, and not buried yet
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(_hold(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
