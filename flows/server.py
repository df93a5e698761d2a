"""Select or run the Prefect server of a command: the one of Prefect's settings, this workspace's server, or none."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet_pipeline.system import ports, process

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

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
            failure = client.api_healthcheck() or _why_not_ready(client)
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
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Without the address, the pages would ask port 4200, which may be another server's.
    with _child(command, port, "server.log", {"PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api"}) as api:
        address = _home() / _ADDRESS
        address.write_text(api, encoding="utf-8")
        try:
            yield api
        finally:
            address.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary(meanwhile: Callable[[], object]) -> Iterator[str]:
    """Run a Prefect server without pages and schedules during the `with` body; it ends with this process.

    Prefect's own temporary server, which this one is otherwise like, outlives a process that is killed. `meanwhile` is
    called while the server starts. Yields the API's address.
    """
    port = ports.free_port()
    command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1"]
    # Without --app-dir, the modules of the current folder would come first.
    command += ["--port", str(port), "--log-level", "error", "--lifespan", "on", "--app-dir", os.devnull]
    with _child(command, port, "temporary.log", {"PREFECT__SERVER_EPHEMERAL": "1"}, meanwhile) as api:
        try:
            yield api
        finally:
            _send_what_waits()


@contextlib.contextmanager
def _child(
    command: Sequence[str],
    port: int,
    log_name: str,
    variables: Mapping[str, str],
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[str]:
    """Run a module as the server of the workspace's database, and use it in this process, during the `with` body."""
    home, api = _home(), f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    python = [sys.executable, "-P", "-m"]
    with (
        (home / log_name).open("wb") as log,
        process.leashed([*python, *command], {**os.environ, **variables}, stdout=log) as child,
    ):
        if meanwhile:
            meanwhile()
        ports.wait_for(f"{api}/health", child, home / log_name)
        _use(api)
        try:
            yield api
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            _read_environment_again()


def _send_what_waits() -> None:
    """Send logs and events that wait in this process; at its exit, Prefect would try a dead server for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=_ANSWER_SECONDS)
    EventsWorker.drain_all(timeout=_ANSWER_SECONDS)


def _why_not_ready(client: "SyncPrefectClient") -> Exception | None:
    """Return the error of a server that answers and has lost its database, None if it is ready."""
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            client.request("GET", "/ready")
    except PrefectHTTPStatusError as error:
        return error if error.response.status_code >= 500 else None  # Prefect Cloud may not have this address
    return None


def _home() -> Path:
    return Path(os.environ["PREFECT_HOME"]).resolve()


def _use(api: str) -> None:
    os.environ["PREFECT_API_URL"] = api
    _read_environment_again()


def _read_environment_again() -> None:
    """Let Prefect read its settings again; it has read them when it was imported."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
