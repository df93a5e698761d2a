"""Which Prefect server a command talks to: the one that is asked for, this workspace's own, or none."""

import contextlib
import errno
import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet_pipeline import pipeline

PORT = 4200
START_SECONDS = 120.0
_ADDRESS = "api-url"
# Proxies are for the world outside.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def prepare(quiet: bool) -> None:
    """Set what Prefect reads when it is imported: its home is in the workspace, and it logs to its pages.

    With `quiet` nothing of Prefect's reaches the terminal. Variables that are set already stay as they are.
    """
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
    # Prefect's own 20 seconds for its temporary server are too few on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(START_SECONDS)))
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def connect() -> str | None:
    """Let this process use the server that is there, and give its API's address; None where there is none.

    Raises ConnectionError where PREFECT_API_URL names one that does not answer.
    """
    asked_for = os.environ.get("PREFECT_API_URL")
    if asked_for:
        if _ask(f"{asked_for}/health") is None:
            raise ConnectionError(
                f"no Prefect server answers at {asked_for} (PREFECT_API_URL); start it, or unset the variable"
            )
        return asked_for
    address = _home() / _ADDRESS
    own = address.read_text(encoding="utf-8").strip() if address.exists() else f"http://127.0.0.1:{PORT}/api"
    settings = _ask(f"{own}/admin/settings")
    # Someone else's server may have taken the port since.
    if not isinstance(settings, dict) or Path(str(settings.get("home"))).resolve() != _home():
        return None
    os.environ["PREFECT_API_URL"] = own
    return own


@contextlib.contextmanager
def running(port: int = PORT) -> Iterator[str]:
    """Run a Prefect server of this workspace on 127.0.0.1 for as long as the `with` body, and give its API's address.

    Its log is PREFECT_HOME/server.log. Raises OSError where the port is taken or the server does not start.
    """
    check_port(port, "Prefect", "--prefect-port")
    home, api = _home(), f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log, pipeline.leashed(command, stdout=log) as child:
        wait_for(f"{api}/health", child, home / "server.log")
        (home / _ADDRESS).write_text(api, encoding="utf-8")
        os.environ["PREFECT_API_URL"] = api
        try:
            yield api
        finally:
            (home / _ADDRESS).unlink(missing_ok=True)
            del os.environ["PREFECT_API_URL"]


def check_port(port: int, name: str, option: str, host: str = "127.0.0.1") -> None:
    """Raise OSError if something listens there, or the port cannot be had for another reason."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise OSError(f"{host}, for {name}, is no address ({error}): give another --host") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(f"{host}, for {name}, is no address of this machine: give another --host") from None
            reason = "is taken: end its owner or" if error.errno == errno.EADDRINUSE else f"cannot be had ({error}):"
            raise OSError(f"port {port}, for {name}, {reason} give another {option}") from None
        except OverflowError:
            raise OSError(f"{port} is no port, for {name}: give another {option}, 1 to 65535") from None


def wait_for(url: str, child: pipeline.Leashed, log: Path) -> None:
    """Wait until the child answers. Raises OSError with the end of its log where it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while _ask(url) is None:
        if child.ended or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise OSError(f"{url} does not answer; {log} ends with:\n{tail}")
        time.sleep(0.2)


def _ask(url: str) -> Any:
    """The answer, from JSON if it is JSON; None where there is none."""
    try:
        with _OPENER.open(url, timeout=5) as answer:
            text = answer.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):  # the latter from whatever else listens there
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _home() -> Path:
    return Path(os.environ["PREFECT_HOME"]).resolve()
