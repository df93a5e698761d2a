"""Tests of the program that serves a Bento: what it starts, and what it leaves when it is told to end."""

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
from running_service import Service

from mobilenet_pipeline import packaging
from serving.check import is_worker


def test_a_taken_port_is_an_error_that_names_the_address(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    done = subprocess.run(
        packaging.serve_command(service.tag, port=int(port)), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"{service.tag} cannot be served on 127.0.0.1, port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_is_no_address_to_listen_on(service: Service) -> None:
    done = subprocess.run(packaging.serve_command(service.tag, "no-host"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "'no-host' does not appear to be an IPv4 or IPv6 address" in done.stderr


def test_nothing_but_the_api_listens(service: Service) -> None:
    found = {
        each.laddr.port
        for process in service.processes()
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }
    assert found == {int(service.address.rpartition(":")[2])}


def test_a_worker_that_was_killed_is_replaced(
    filled_store: Path, start: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    with start(filled_store, SERVING_WORKERS="1") as service:
        _await_word(tmp_path / "service.log")
        (killed,) = [each for each in service.processes() if is_worker(each)]
        killed.kill()
        deadline = time.monotonic() + 60
        while not [each for each in service.processes() if is_worker(each) and each.pid != killed.pid]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert service.ask("GET", "/model").status_code == 200


def test_a_service_whose_workers_end_before_they_are_ready_ends(store: Path) -> None:
    done = subprocess.run(packaging.serve_command("no:such", port=0), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no:such cannot be served" in done.stderr
    assert "it ended before it was ready" in done.stderr


def test_who_is_told_to_end_leaves_nothing_behind(
    filled_store: Path, start: Callable[..., AbstractContextManager[Service]]
) -> None:
    with start(filled_store) as service:
        (counts,) = (filled_store / "metrics").glob(f"*-{service.address.rpartition(':')[2]}")
        everything = service.processes()
        service.process.terminate()
        assert psutil.wait_procs(everything, timeout=30)[1] == []
        assert not counts.exists()


def test_an_address_of_version_6_is_listened_on(
    filled_store: Path, start: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    with start(filled_store, host="::1") as service:
        assert service.ask("GET", "/model").status_code == 200
        _await_word(tmp_path / "service.log")


def _await_word(log: Path) -> None:
    """Wait until the program knows that its service is ready, which it may hear a moment later than others."""
    deadline = time.monotonic() + 30
    while "ready after" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
