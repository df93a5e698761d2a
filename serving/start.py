"""Serve a Bento with BentoML's own workers and supervisor (circus), without BentoML's command line.

`bentoml serve` imports BentoML and the service before it starts workers that import both again: a third of the time
until the first answer. Its supervisor also takes orders on a TCP port from every user of the machine; this one takes
none. And it restarts a failing worker without end; this program ends instead.
"""

import argparse
import http.client
import ipaddress
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from circus.arbiter import Arbiter
from circus.sockets import CircusSocket
from circus.watcher import Watcher

from serving import settings

STOP_SECONDS = 60
"""The longest time that a stopping service gives to requests that have begun."""
CHECK_SECONDS = 1
"""Between two looks for workers that have ended."""


def serve(tag: str, host: str, port: int, metrics: Path) -> None:
    """Serve the Bento on the address until SIGTERM or SIGINT. The workers keep their counts in the folder `metrics`.

    `host` is an IP address. Prints the address when it is bound. Raises ValueError for another host or a wrong
    setting, OSError if the address or the folder cannot be used, and RuntimeError if all workers end before one is
    ready.
    """
    address = ipaddress.ip_address(host)
    settings.check()
    keep_alive = ["--timeout-keep-alive", str(settings.keep_alive())]

    try:  # here, because an error of `begin` would be a traceback of the supervisor
        metrics.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=metrics).close()
    except OSError as error:
        raise OSError(f"{error}; make the folder writable, or set BENTOML_HOME to a store that is") from None

    def begin(**_: object) -> bool:
        remove_folder()  # a killed server leaves its counts
        metrics.mkdir(parents=True)
        print(f"{tag} on http://{f'[{host}]' if address.version == 6 else host}:{port}, Ctrl-C ends it", flush=True)
        return True

    def remove_folder(**_: object) -> bool:
        shutil.rmtree(metrics, ignore_errors=True)
        return True

    workers = Watcher(
        "service",
        shlex.quote(sys.executable),
        ["-m", settings.PROGRAM, tag, "--fd", "$(circus.sockets.http)", "--worker-id", "$(CIRCUS.WID)", *keep_alive],
        numprocesses=settings.processes(),
        env={"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
        copy_env=True,
        use_sockets=True,
        stop_children=True,
        graceful_timeout=STOP_SECONDS,
        respawn=False,  # until one has been ready
        # After the address is bound: until then, the folder may belong to another server.
        hooks={"before_start": (begin, False), "after_stop": (remove_folder, False)},
    )
    arbiter = Arbiter(
        [workers],
        endpoint="inproc://orders",
        pubsub_endpoint="inproc://events",
        check_delay=CHECK_SECONDS,
        sockets=[CircusSocket("http", host, port, socket.AF_INET6 if address.version == 6 else socket.AF_INET)],
    )
    # A server on all addresses answers on the loopback address.
    loopback = "::1" if address.version == 6 else "127.0.0.1"
    probed = loopback if address.is_unspecified else host
    threading.Thread(target=_await, args=(workers, probed, port), daemon=True).start()
    try:
        arbiter.start().result()
    except RuntimeError:  # from circus: no worker is left, and none may be started
        raise RuntimeError("it ended before it was ready; its log is above") from None


def is_ready(host: str, port: int) -> bool:
    """Return whether /readyz answers with status 200."""
    connection = http.client.HTTPConnection(host, port, timeout=1)  # ignores proxies, and is imported fast
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _await(workers: Watcher, host: str, port: int) -> None:
    """Let the supervisor replace workers that end, as soon as one has been ready."""
    started = time.monotonic()
    while not is_ready(host, port):
        time.sleep(0.02)
    workers.respawn = True
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", help="NAME:VERSION of a Bento in the store at BENTOML_HOME")
    parser.add_argument("--host", required=True, help="IP address to listen on")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--metrics", type=Path, required=True, help="folder for the counts of this server alone")
    chosen = parser.parse_args()
    try:
        serve(chosen.tag, chosen.host, chosen.port, chosen.metrics)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {chosen.tag} cannot be served on {chosen.host}, port {chosen.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
