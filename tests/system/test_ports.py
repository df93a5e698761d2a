"""Ports of this machine: which one is free, and which server answers."""

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mobilenet_pipeline.system import ports, process

BODIES = {"/json": (200, b'{"ready": true}'), "/text": (200, b"OK"), "/error": (503, b"{}")}


class Handler(BaseHTTPRequestHandler):
    """Answers a path with its status and body; /moved leads to /json."""

    def do_GET(self) -> None:
        status, body = BODIES.get(self.path, (302, b""))
        self.send_response(status)
        self.send_header("Location", "/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server."""
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_free_port_passes() -> None:
    ports.check_port(free_port(), "Prefect", "--prefect-port")


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_taken_port_is_named_with_its_option(host: str, family: int) -> None:
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port}, for Prefect, is taken: .* another --prefect-port"):
            ports.check_port(port, "Prefect", "--prefect-port", host)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nosuch.invalid", "a..b"])
def test_an_address_elsewhere_is_named(host: str) -> None:
    with pytest.raises(OSError, match=f"{host}, for the API, is no address .*give another --host"):
        ports.check_port(3000, "the API", "--port", host)


def test_an_empty_host_is_no_address() -> None:
    with pytest.raises(OSError, match=r"an empty name, for the API, is no address .*give another --host"):
        ports.check_port(free_port(), "the API", "--port", "")


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0")])
def test_a_host_becomes_its_address(host: str, address: str) -> None:
    assert ports.check_port(free_port(), "the API", "--port", host) == address


@pytest.mark.parametrize("port", [70_000, 0, -1])
def test_a_number_that_is_no_port_is_named(port: int) -> None:
    with pytest.raises(OSError, match=f"{port} is no port, for the API: give another --port, 1 to 65535"):
        ports.check_port(port, "the API", "--port")


@pytest.mark.parametrize(("path", "body"), [("/json", {"ready": True}), ("/text", "OK"), ("/moved", {"ready": True})])
def test_an_answer_is_its_body(server: str, path: str, body: object) -> None:
    assert ports.ask(f"{server}{path}") == body


def test_a_proxy_is_not_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert ports.ask(f"{server}/text") == "OK"


def test_an_error_is_no_answer(server: str) -> None:
    assert ports.ask(f"{server}/error") is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[", ""])
def test_an_address_without_a_server_has_no_answer(url: str) -> None:
    assert ports.ask(url, 1) is None


def test_a_silent_server_has_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ports.ask(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1) is None


def test_waiting_ends_with_the_first_answer(server: str, tmp_path: Path) -> None:
    with process.leashed([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        ports.wait_for(f"{server}/text", child, tmp_path / "log")


def test_waiting_for_an_ended_child_shows_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('the reason')"]
    with (
        log.open("wb") as file,
        process.leashed(command, stdout=file) as child,
        pytest.raises(OSError, match=r"does not answer; .*log ends with:\nthe reason"),
    ):
        ports.wait_for(f"http://127.0.0.1:{free_port()}", child, log)
