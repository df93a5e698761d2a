"""Which Prefect server a command talks to: the one that is asked for, this workspace's own, or none."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mobilenet_pipeline.system import ports, process

PORT = 4200
_ADDRESS = "api-url"


def prepare(quiet: bool) -> None:
    """Set what Prefect reads when it is imported: its home is in the workspace, and it logs to its pages.

    With `quiet` nothing of Prefect's reaches the terminal. Variables that are set already stay as they are.
    """
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
    # Prefect's own 20 seconds for its temporary server are too few on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(ports.START_SECONDS)))
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def connect() -> str | None:
    """Let this process use the server that is there, and give its API's address; None where there is none.

    Raises ConnectionError where PREFECT_API_URL names one that does not answer.
    """
    asked_for = os.environ.get("PREFECT_API_URL")
    if asked_for:
        if ports.ask(f"{asked_for}/health") is None:
            raise ConnectionError(
                f"no Prefect server answers at {asked_for} (PREFECT_API_URL); start it, or unset the variable"
            )
        return asked_for
    address = _home() / _ADDRESS
    own = address.read_text(encoding="utf-8").strip() if address.exists() else f"http://127.0.0.1:{PORT}/api"
    settings = ports.ask(f"{own}/admin/settings")
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
