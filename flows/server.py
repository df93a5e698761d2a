"""Select or run the Prefect server of a command: PREFECT_API_URL, this workspace's server, or none."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mobilenet_pipeline.system import ports, process

PORT = 4200
_ADDRESS = "api-url"


def prepare(quiet: bool) -> None:
    """Set the environment variables that Prefect reads when it is imported.

    Prefect's home is in the workspace. With `quiet`, Prefect prints nothing to the terminal. Variables that are already
    set stay unchanged.
    """
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
    # Prefect's default of 20 seconds for its temporary server is too short on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(ports.START_SECONDS)))
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def connect() -> str | None:
    """Return the API address of a running server, and use it in this process.

    Returns None if no server is running. Raises ConnectionError if the server of PREFECT_API_URL does not answer.
    """
    setting = os.environ.get("PREFECT_API_URL")
    if setting:
        if ports.ask(f"{setting}/health") is None:
            raise ConnectionError(
                f"no Prefect server answers at {setting} (PREFECT_API_URL); start it, or unset the variable"
            )
        return setting
    address = _home() / _ADDRESS
    own = address.read_text(encoding="utf-8").strip() if address.exists() else f"http://127.0.0.1:{PORT}/api"
    settings = ports.ask(f"{own}/admin/settings")
    # The server on this port may belong to another workspace.
    if not isinstance(settings, dict) or Path(str(settings.get("home"))).resolve() != _home():
        return None
    os.environ["PREFECT_API_URL"] = own
    return own


@contextlib.contextmanager
def running(port: int = PORT) -> Iterator[str]:
    """Run this workspace's Prefect server during the `with` body.

    Yields the API's address on 127.0.0.1. The server's log is PREFECT_HOME/server.log. Raises OSError if the port is
    taken or the server does not start.
    """
    ports.check_port(port, "Prefect", "--prefect-port")
    home, api = _home(), f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log, process.leashed(command, stdout=log) as child:
        ports.wait_for(f"{api}/health", child, home / "server.log")
        (home / _ADDRESS).write_text(api, encoding="utf-8")
        os.environ["PREFECT_API_URL"] = api
        try:
            yield api
        finally:
            (home / _ADDRESS).unlink(missing_ok=True)
            del os.environ["PREFECT_API_URL"]


def _home() -> Path:
    return Path(os.environ["PREFECT_HOME"]).resolve()
