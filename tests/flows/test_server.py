"""Which Prefect server a command uses, and what a server of its own tells its pages."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows import server
from mobilenet_pipeline.system import ports

ROOT = Path(__file__).resolve().parents[2]
DEAD = "http://127.0.0.1:9/api"
PLACES = {
    ".env": f"PREFECT_API_URL={DEAD}",
    "prefect.toml": f'[api]\nurl = "{DEAD}"',
    ".prefect/profiles.toml": f'active = "away"\n[profiles.away]\nPREFECT_API_URL = "{DEAD}"',
}


@pytest.fixture
def own_settings(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace for which the environment sets nothing of Prefect's."""
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, "")  # so that the test's end restores it
        monkeypatch.delenv(name)
    (workspace / ".prefect").mkdir()
    return workspace


@pytest.mark.parametrize("place", PLACES)
def test_an_address_in_any_of_prefect_s_settings_counts(place: str, own_settings: Path) -> None:
    (own_settings / "prefect.toml").write_bytes((ROOT / "prefect.toml").read_bytes())
    with (own_settings / place).open("a") as file:
        file.write(f"\n{PLACES[place]}\n")
    server.prepare(quiet=True)
    with pytest.raises(ConnectionError, match=f"no Prefect server answers at {DEAD}"):
        server.connect()


def test_a_server_with_a_relative_home_may_be_another_workspace_s(
    own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.prepare(quiet=True)
    monkeypatch.setattr(ports, "ask", lambda url: {"home": ".prefect"})
    assert server.connect() is None


def test_prefect_s_own_commands_use_the_project_s_home(own_settings: Path) -> None:
    (own_settings / "prefect.toml").write_bytes((ROOT / "prefect.toml").read_bytes())
    command = [sys.executable, "-m", "prefect", "config", "view", "--show-sources"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "PREFECT_HOME='.prefect' (from prefect.toml)" in shown


def test_the_pages_of_a_server_ask_that_server(server: str) -> None:
    assert ports.ask(f"{server.removesuffix('/api')}/ui-settings")["api_url"] == server


def test_a_server_that_has_lost_its_database_is_named(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        Thread(target=broken.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{broken.server_port}/api")
        server.prepare(quiet=True)
        with pytest.raises(ConnectionError, match=r"no Prefect server answers at .*503"):
            server.connect()
        broken.shutdown()
