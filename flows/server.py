"""Select or run the Prefect server of a command: the one of Prefect's settings, this workspace's server, or none."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mobilenet_pipeline.system import ports, process

PORT = 4200
_ADDRESS = "api-url"
_ANSWER_SECONDS = 10.0


def prepare(quiet: bool) -> None:
    """Set the environment variables that Prefect reads when it is imported.

    Prefect's home is in the workspace unless Prefect's settings name another. With `quiet`, Prefect prints nothing to
    the terminal. Variables that are already set stay unchanged.
    """
    # Prefect's default of 20 seconds for its temporary server is too short on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(ports.START_SECONDS)))
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from prefect.settings import Settings

    settings = Settings()
    home = settings.home if "home" in settings.model_fields_set else Path(".prefect")
    os.environ["PREFECT_HOME"] = str(home.resolve())  # absolute: a child may run in another folder
    _read_environment_again()


def connect() -> str | None:
    """Return the API address of a running server, and use it in this process.

    The address of Prefect's settings comes first: PREFECT_API_URL in the environment, `.env`, `prefect.toml` or a
    profile. Returns None if no server is running. Raises ConnectionError if the server of the settings does not answer.
    """
    from prefect import get_client
    from prefect.settings import Settings

    setting = Settings().api.url
    if setting:
        with get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client:
            failure = client.api_healthcheck()
        if failure:
            raise ConnectionError(
                f"no Prefect server answers at {setting} (PREFECT_API_URL): {failure}. Start it, or unset the setting; "
                "`prefect config view` shows where it is set"
            )
        return setting
    address = _home() / _ADDRESS
    own = address.read_text(encoding="utf-8").strip() if address.exists() else f"http://127.0.0.1:{PORT}/api"
    settings = ports.ask(f"{own}/admin/settings")
    # The server on this port may belong to another workspace. A relative home is that of `prefect server start` in any.
    if not isinstance(settings, dict) or Path(str(settings.get("home"))) != _home():
        return None
    _use(own)
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
    # Without it, the pages would ask port 4200, which may be another server's.
    variables = {**os.environ, "PREFECT_SERVER_UI_API_URL": api}
    with (home / "server.log").open("wb") as log, process.leashed(command, variables, stdout=log) as child:
        ports.wait_for(f"{api}/health", child, home / "server.log")
        (home / _ADDRESS).write_text(api, encoding="utf-8")
        _use(api)
        try:
            yield api
        finally:
            (home / _ADDRESS).unlink(missing_ok=True)
            os.environ.pop("PREFECT_API_URL", None)
            _read_environment_again()


def _home() -> Path:
    return Path(os.environ["PREFECT_HOME"]).resolve()


def _use(api: str) -> None:
    os.environ["PREFECT_API_URL"] = api
    _read_environment_again()


def _read_environment_again() -> None:
    """Let Prefect read its settings again; it has read them when it was imported."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
