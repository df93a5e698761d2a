"""Ports of this machine: whether one is free, and whether a server answers on it. Never through a proxy."""

import errno
import socket
import time
from pathlib import Path
from typing import Any

from mobilenet_pipeline.system import process

START_SECONDS = 120.0
"""The longest time that a server may take to start."""


def check_port(port: int, name: str, option: str, host: str = "127.0.0.1") -> str:
    """Return the IP address of the host; IPv4 if it has both.

    Raises OSError, naming the command-line `option` to change, if the server `name` cannot listen on the port there.
    """
    if not 0 < port < 65536:
        raise OSError(f"{port} is no port, for {name}: give another {option}, 1 to 65535")
    try:
        found: dict[int, str] = {family: str(address[0]) for family, *_, address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host or 'an empty name'}, for {name}, is no address ({error}): give another --host") from None
    family = socket.AF_INET if socket.AF_INET in found else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((found[family], port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(f"{host}, for {name}, is no address of this machine: give another --host") from None
            reason = "is taken: end its owner or" if error.errno == errno.EADDRINUSE else f"cannot be used ({error}):"
            raise OSError(f"port {port}, for {name}, {reason} give another {option}") from None
    return found[family]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, seconds: float = 5) -> Any:
    """GET the URL and return the body, parsed if it is JSON; None without a success within the seconds."""
    import httpx

    try:
        answer = httpx.get(url, trust_env=False, follow_redirects=True, timeout=seconds).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    try:
        return answer.json()
    except ValueError:
        return answer.text


def wait_for(url: str, child: process.Leashed, log: Path) -> None:
    """Wait until the child answers. Raises OSError with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while ask(url) is None:
        if child.ended or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise OSError(f"{url} does not answer; {log} ends with:\n{tail}")
        time.sleep(0.2)
