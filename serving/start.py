"""Serve a Bento with BentoML's own workers and supervisor, but without its command line.

`bentoml serve` imports all of BentoML and the service, and then starts workers that do the same: half of the time until
the first answer. It also lets its supervisor take orders on a TCP port, from every user of the machine; here they come
over sockets in a folder that nobody else can enter.
"""

import argparse
import ipaddress
import shlex
import socket
import sys
import tempfile
from pathlib import Path

from circus.arbiter import Arbiter
from circus.sockets import CircusSocket
from circus.watcher import Watcher

from serving.workers import PROGRAM, WORKERS

STOP_SECONDS = 60
"""What requests that have begun may take when the service is told to end."""
CHECK_SECONDS = 1
"""Between two looks for workers that have ended."""


def serve(tag: str, host: str, port: int) -> None:
    """Serve the Bento on the address until SIGTERM or SIGINT. Raises OSError where the address cannot be had."""
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    with tempfile.TemporaryDirectory(prefix="serve-") as own:
        metrics = Path(own, "metrics")
        metrics.mkdir()
        workers = Watcher(
            "service",
            shlex.quote(sys.executable),
            ["-m", PROGRAM, tag, "--fd", "$(circus.sockets.http)", "--worker-id", "$(CIRCUS.WID)"],
            numprocesses=WORKERS,
            env={"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            copy_env=True,
            use_sockets=True,
            stop_children=True,
            graceful_timeout=STOP_SECONDS,
        )
        arbiter = Arbiter(
            [workers],
            endpoint=f"ipc://{own}/orders",
            pubsub_endpoint=f"ipc://{own}/events",
            check_delay=CHECK_SECONDS,
            sockets=[CircusSocket("http", host, port, family)],
        )
        arbiter.start().result()


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", help="NAME:VERSION of a Bento in the store that BENTOML_HOME names")
    parser.add_argument("--host", required=True, help="IP address to listen on")
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    try:
        serve(chosen.tag, chosen.host, chosen.port)
    except (OSError, ValueError) as error:
        print(f"error: {chosen.tag} cannot be served on {chosen.host}:{chosen.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
