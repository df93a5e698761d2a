"""Serve a Bento with BentoML's own workers and supervisor, but without its command line.

`bentoml serve` imports all of BentoML and the service, and then starts workers that do the same: a third of the time
until the first answer. It also lets its supervisor take orders on a TCP port, from every user of the machine; here it
takes none. And it starts a worker that cannot start again and again, for ever; here the program ends then.
"""

import argparse
import ipaddress
import shlex
import shutil
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

from circus.arbiter import Arbiter
from circus.sockets import CircusSocket
from circus.watcher import Watcher

from serving.workers import PROGRAM, WORKERS

STOP_SECONDS = 60
"""What requests that have begun may take when the service is told to end."""
CHECK_SECONDS = 1
"""Between two looks for workers that have ended."""
# Proxies are for the world outside.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def serve(tag: str, host: str, port: int, metrics: Path) -> None:
    """Serve the Bento on the address until SIGTERM or SIGINT; the workers count in the folder `metrics`.

    Raises OSError where the address cannot be had, RuntimeError where all workers end before one is ready.
    """
    address = ipaddress.ip_address(host)

    def make_folder(**_: object) -> bool:
        remove_folder()  # a server that was killed has left its counts
        metrics.mkdir(parents=True)
        return True

    def remove_folder(**_: object) -> bool:
        shutil.rmtree(metrics, ignore_errors=True)
        return True

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
        respawn=False,  # until one has been ready
        # Not before the address is had: until then, the folder may be another server's.
        hooks={"before_start": (make_folder, False), "after_stop": (remove_folder, False)},
    )
    arbiter = Arbiter(
        [workers],
        endpoint="inproc://orders",
        pubsub_endpoint="inproc://events",
        check_delay=CHECK_SECONDS,
        sockets=[CircusSocket("http", host, port, socket.AF_INET6 if address.version == 6 else socket.AF_INET)],
    )
    # Who listens to all addresses listens to its own.
    asked = ("::1" if address.version == 6 else "127.0.0.1") if address.is_unspecified else host
    url = f"http://{f'[{asked}]' if address.version == 6 else asked}:{port}/readyz"
    threading.Thread(target=_await, args=(workers, url), daemon=True).start()
    try:
        arbiter.start().result()
    except RuntimeError:  # what circus says where no worker is left and none is to be started
        raise RuntimeError("it ended before it was ready; what it said stands above") from None


def _await(workers: Watcher, url: str) -> None:
    """Let workers that end be replaced, as soon as one has been ready."""
    started = time.monotonic()
    while not _answers(url):
        time.sleep(0.02)
    workers.respawn = True
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)


def _answers(url: str) -> bool:
    try:
        with OPENER.open(url, timeout=1):
            return True
    except OSError:
        return False


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", help="NAME:VERSION of a Bento in the store that BENTOML_HOME names")
    parser.add_argument("--host", required=True, help="IP address to listen on")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--metrics", type=Path, required=True, help="folder for what is counted, of this server alone")
    chosen = parser.parse_args()
    try:
        serve(chosen.tag, chosen.host, chosen.port, chosen.metrics)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {chosen.tag} cannot be served on {chosen.host}, port {chosen.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
