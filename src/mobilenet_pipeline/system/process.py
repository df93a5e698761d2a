"""Child processes that end with their parent, even if the parent is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil


GRACE_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL."""


class Leashed(subprocess.Popen[bytes]):
    """A child process. After the `with` body, `cpu_seconds` is the CPU time of the child and its descendants."""

    cpu_seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether the process has ended. `poll` would reap it, and `leashed` needs its resource usage."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Group:
    """Child processes that end together, whichever threads have started them. `ended` is set once they have to."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._leashes: set[IO[bytes]] = set()

    def end(self) -> None:
        """End all children at the same time; one that starts later ends at once."""
        with self._lock:
            self.ended.set()
            for leash in self._leashes:
                leash.close()

    @contextmanager
    def holding(self, leash: IO[bytes]) -> Iterator[None]:
        """Let `end` close the leash of a child during the `with` body."""
        with self._lock:
            self._leashes.add(leash)
            if self.ended.is_set():
                leash.close()
        try:
            yield
        finally:
            with self._lock:
                self._leashes.remove(leash)


group: ContextVar[Group | None] = ContextVar("group", default=None)
"""The group of the children that this context starts; `grouped` sets it."""


@contextmanager
def grouped() -> Iterator[Group]:
    """Put the children that start in the `with` body, or in threads with its context, into one group."""
    token = group.set(new := Group())
    try:
        yield new
    finally:
        group.reset(token)


@contextmanager
def leashed(
    command: list[str],
    env: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
    ending: signal.Signals = signal.SIGTERM,
    **streams: Any,
) -> Iterator[Leashed]:
    """Run a command during the `with` body, and yield the child process.

    The command has its own session. At the end of the body, it gets `ending` and all its descendants SIGTERM, and what
    is left after `grace` seconds SIGKILL. The same happens if this process dies, because the child reads a pipe that
    only this process holds open. To let the command finish by itself, read its output to the end in the body. Raises
    KeyboardInterrupt after the body if the child's group was ended: signals reach the main thread only, and this may be
    another one.
    """
    reading, writing = os.pipe()
    own = group.get()
    with (
        open(reading, "rb") as held,
        open(writing, "wb") as leash,
        own.holding(leash) if own else nullcontext(),
    ):
        options = [str(reading), str(grace), str(int(ending))]
        holder = [sys.executable, "-P", "-m", "mobilenet_pipeline.system.process", *options, *command]
        child = Leashed(
            holder, env=env, pass_fds=(held.fileno(),), start_new_session=True, stderr=subprocess.STDOUT, **streams
        )
        try:
            yield child
        finally:
            leash.close()
            for _ in child.stdout or ():  # a child with a full pipe would wait for a reader and not end
                pass
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            child.cpu_seconds = usage.ru_utime + usage.ru_stime
            if child.stdout:
                child.stdout.close()
        if own and own.ended.is_set():
            raise KeyboardInterrupt


def _hold(leash: int, grace: float, ending: int, command: list[str]) -> int:
    """Run the command, end all its descendants, and return its exit code.

    The command ends early if `leash` closes or SIGTERM arrives.
    """
    _adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the child of a process that ignores it would ignore it, too
    child = subprocess.Popen(command)
    terminated: set[psutil.Process] = set()
    lock = threading.RLock()

    def end() -> None:
        # A training that gets a second SIGTERM ends without saving. Both threads may call this, because the command
        # often ends before its descendants.
        with lock:
            _end_descendants(grace, terminated, {child.pid: ending})

    def wait_for_release() -> None:
        os.read(leash, 1)
        end()

    threading.Thread(target=wait_for_release, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end())
    code = child.wait()
    end()
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants, on Linux only."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end_descendants(grace: float, terminated: set["psutil.Process"], endings: Mapping[int, int]) -> None:
    """End all descendants: first by the signal that `endings` has for a process id, or SIGTERM; later by SIGKILL.

    Later is after `grace` seconds. Processes in `terminated` have had their first signal; the others are added.
    """
    import psutil

    deadline = time.monotonic() + grace
    while left := {process for process in psutil.Process().children(recursive=True) if _runs(process)}:
        late = time.monotonic() > deadline
        for process in left if late else left - terminated:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if late else endings.get(process.pid, signal.SIGTERM))
        terminated |= left
        time.sleep(0.05)


def _runs(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE  # a zombie has ended; its parent has not reaped it yet
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(_hold(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
