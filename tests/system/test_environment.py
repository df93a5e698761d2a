"""What of a user's settings for other projects reaches the frameworks."""

import os
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
import requests

from mobilenet_pipeline.system import environment
from mobilenet_pipeline.system.environment import prepared

PROXY = {"HTTP_PROXY": "http://proxy.example:3128"}


def test_this_machine_is_added_to_the_hosts_without_proxy() -> None:
    assert prepared(PROXY | {"NO_PROXY": "corp.example"})["NO_PROXY"] == "corp.example,localhost,127.0.0.1,::1"


def test_both_spellings_get_the_hosts_of_both() -> None:
    variables = prepared({"all_proxy": "proxy:1", "NO_PROXY": "one", "no_proxy": "two"})
    assert variables["NO_PROXY"] == variables["no_proxy"] == "two,one,localhost,127.0.0.1,::1"


def test_no_proxy_for_any_host_stays_so() -> None:
    assert prepared(PROXY | {"no_proxy": "*"})["NO_PROXY"] == "*"


def test_without_a_proxy_nothing_is_added() -> None:
    assert "NO_PROXY" not in prepared({})


@pytest.mark.parametrize("hosts", ["[::1]", "fe80::/10", "10.0.0.0/8 corp.example", ".corp,,x", "http://a:80"])
def test_httpx_can_read_the_hosts_without_proxy(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in prepared(PROXY | {"NO_PROXY": hosts}).items():
        monkeypatch.setenv(name, value)
    httpx.Client().close()


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "needs the package socksio"),
        ("all_proxy", "socks://127.0.0.1:1080", "socks:// is no kind of proxy"),
        ("SSL_CERT_FILE", "/no/such.pem", "there is no file /no/such.pem"),
    ],
)
def test_a_setting_that_no_client_can_use_is_named(name: str, value: str, cause: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{cause}"):
        prepared({name: value})


def test_what_is_prepared_stays_as_it_is() -> None:
    once = prepared(PROXY | {"KERAS_HOME": "/big/keras", "NO_PROXY": "corp.example"})
    assert prepared(once) == once


def test_telemetry_is_off_unless_the_user_wants_it() -> None:
    assert prepared({})["DO_NOT_TRACK"] == "1"
    assert prepared({"DO_NOT_TRACK": "0"})["DO_NOT_TRACK"] == "0"


def test_keras_keeps_its_downloads_where_the_user_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = prepared({"KERAS_HOME": "/big/keras"})
    monkeypatch.setenv(environment.KERAS_DOWNLOADS, variables[environment.KERAS_DOWNLOADS])
    assert environment.keras_downloads() == Path("/big/keras")


def test_settings_of_keras_for_other_projects_are_not_passed_on() -> None:
    variables = prepared({"KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1", "KERAS_MAX_EPOCHS": "1"})
    assert variables["KERAS_BACKEND"] == "tensorflow"
    assert not {"TF_USE_LEGACY_KERAS", "KERAS_MAX_EPOCHS"} & variables.keys()


def test_what_the_terminal_cannot_show_is_printed_as_its_number() -> None:
    code = "from mobilenet_pipeline.system import environment; environment.prepare(); print(chr(8230))"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert subprocess.run([sys.executable, "-c", code], env=ascii_only, stdout=subprocess.PIPE).stdout == b"\\u2026\n"


class Proxy(BaseHTTPRequestHandler):
    """Refuses, and counts what it was asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_no_client_asks_a_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        for name, value in prepared({"HTTP_PROXY": f"http://127.0.0.1:{proxy.server_port}"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("http_proxy", raising=False)
        for url in ("http://127.0.0.1:9/", "http://localhost:9/"):
            for get in (httpx.get, requests.get, urllib.request.urlopen):
                with pytest.raises((OSError, httpx.HTTPError)):  # nothing listens on this port
                    get(url)
        assert httpx.get("http://elsewhere.invalid/").status_code == 502
        proxy.shutdown()
        thread.join()
    assert Proxy.asked == ["http://elsewhere.invalid/"]


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(environment.pwd, "getpwuid", nameless)
    assert environment.prepared({})["USER"] == f"uid-{os.getuid()}"
    assert environment.prepared({"USER": "ann"})["USER"] == "ann"


def test_the_team_s_settings_come_after_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "servers.env"
    file.write_text("# MLflow\nMLFLOW_TRACKING_URI=http://mlflow:5000\n#PREFECT_API_URL=http://prefect\nEMPTY=\n")
    with pytest.raises(ValueError, match=r"servers\.env, line 4: 'EMPTY=' is no setting; write NAME=value"):
        environment.team_settings(file)
    file.write_text(file.read_text().replace("EMPTY=\n", ""))
    assert environment.team_settings(file) == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


def test_team_settings_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "servers.env").write_bytes(b"# f\xfcr alle\n")
    with pytest.raises(ValueError, match=r"servers\.env is not text in UTF-8"):
        environment.team_settings(tmp_path / "servers.env")


def test_the_committed_settings_leave_everything_in_the_workspace() -> None:
    assert environment.team_settings(Path(__file__).resolve().parents[2] / "servers.env") == {}
