"""A Ray cluster of two nodes on this machine's loopback, one CPU each, started as on two machines."""

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from team_servers import BIN
from waiting import free_port, wait_until

from mobilenet_pipeline.system.process import leashed

_LOW_PORTS = ("--min-worker-port=0", "--max-worker-port=0")
"""Let the system choose the workers' ports: Ray's own range may contain a port that was found free."""
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""Variables of every process of the cluster and of its drivers; a token of Ray in the home folder changes nothing."""
_HIDE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""A command that runs another one for which a folder is empty."""


class Nodes:
    """The nodes of a cluster, each of which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Ray's sockets have a short limit for their path.
        self.home = tempfile.mkdtemp(prefix="ray-")
        self.port, self.client, self.dashboard = free_port(), free_port(), free_port()
        self._running: dict[str, tuple[ExitStack, int]] = {}

    @property
    def address(self) -> str:
        """The address by which nodes and drivers of this machine join."""
        return f"127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Start the nodes that do not run."""
        if "head" not in self._running:
            self.stop()
            self.start_head()
        if "second" not in self._running:
            self.add("second")
        wait_until(lambda: self.cpus() == 2, self.text)

    def start_head(self) -> None:
        """Start the head."""
        ports = {"port": self.port, "ray-client-server-port": self.client, "dashboard-port": self.dashboard}
        # Ray's client looks for this port by the node's address, which both nodes have here.
        ports["runtime-env-agent-port"] = free_port()
        options = [f"--{name}={port}" for name, port in ports.items()]
        self._start("head", "--head", *options, f"--temp-dir={self.home}")
        wait_until(lambda: self.cpus() == 1, self.text)

    def add(self, name: str, hidden: Path | None = None, **variables: str) -> None:
        """Start another node; its processes have a folder of their own for datasets, and `hidden` is empty to them."""
        self._start(name, f"--address={self.address}", hidden=hidden, **variables)

    def _start(self, name: str, *options: str, hidden: Path | None = None, **variables: str) -> None:
        stack = ExitStack()
        log = stack.enter_context((self.folder / f"{name}.log").open("ab"))
        prefix = [*_HIDE, str(hidden)] if hidden else []
        command = [*prefix, str(BIN / "ray"), "start", "--block", "--num-cpus=1", *_LOW_PORTS, *options]
        # Ray's client server asks its own node through a proxy if there is one; here it is that of conftest.HOSTILE.
        own = {"TMPDIR": tempfile.mkdtemp(dir=self.folder), "NO_PROXY": "*", "no_proxy": "*"}
        child = stack.enter_context(leashed(command, {**os.environ, **RAY, **own, **variables}, 5.0, stdout=log))
        self._running[name] = stack, child.pid

    def kill(self, name: str) -> None:
        """Kill every process of a node, as when the machine goes."""
        stack, pid = self._running.pop(name)
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        stack.close()

    def stop(self) -> None:
        """End all nodes."""
        for name in [*self._running][::-1]:
            self.kill(name)

    def workers(self) -> list[psutil.Process]:
        """Return the processes in which Ray trains, on all nodes."""
        found = []
        for _, pid in self._running.values():
            with suppress(psutil.NoSuchProcess):
                found += [one for one in psutil.Process(pid).children(recursive=True) if _trains(one)]
        return found

    def cpus(self) -> int:
        """Return the CPUs of all nodes that `ray status` counts."""
        command = [str(BIN / "ray"), "status", "--address", self.address]
        done = subprocess.run(command, env={**os.environ, **RAY}, capture_output=True, text=True, check=False)
        found = re.search(r"/(\d+)\.0 CPU", done.stdout)
        return int(found[1]) if found else 0

    def text(self) -> str:
        """Return what the nodes have printed."""
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))


def _trains(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any("ray::RayTrainWorker" in word for word in process.cmdline())
    return False


def can_hide() -> bool:
    """Return whether a node can be started that does not see a folder."""
    return _done(*_HIDE, tempfile.gettempdir(), "true")


def _done(*command: str) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True, check=False).returncode
