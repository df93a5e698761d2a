"""The program that serves a Bento: what it starts, and what it leaves behind."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from bento_fixtures import Service
from waiting import LIMIT, wait_until

from mobilenet_pipeline.operations import backup
from mobilenet_pipeline.release import bento
from serving.check import is_worker
from serving.start import is_ready


def workers(service: Service) -> list[psutil.Process]:
    return [process for process in service.processes() if is_worker(process)]


def test_a_service_is_ready_whatever_proxy_is_set(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert is_ready("127.0.0.1", int(service.address.rpartition(":")[2]))


def test_a_port_without_a_server_is_not_ready() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not is_ready("127.0.0.1", free.getsockname()[1])


def test_a_taken_port_is_an_error_with_the_address(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    done = subprocess.run(bento.serve_command(service.tag, port=int(port)), capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{service.tag} cannot be served on 127.0.0.1, port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "http://" not in done.stdout


def test_a_wrong_setting_is_one_sentence(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_CORES", "two")
    done = subprocess.run(bento.serve_command(service.tag), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "SERVING_CORES is 'two'; set it to a whole number from 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_is_told_how_long_to_keep_a_connection(service: Service) -> None:
    line = workers(service)[0].cmdline()
    assert line[line.index("--timeout-keep-alive") + 1] == "75"


def test_a_host_name_is_an_error(service: Service) -> None:
    done = subprocess.run(bento.serve_command(service.tag, "no-host"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "'no-host' does not appear to be an IPv4 or IPv6 address" in done.stderr


def test_only_the_api_listens(service: Service) -> None:
    ports = {
        entry.laddr.port
        for process in service.processes()
        for entry in process.net_connections("inet")
        if entry.status == psutil.CONN_LISTEN
    }
    assert ports == {int(service.address.rpartition(":")[2])}


def test_a_killed_worker_is_replaced(
    filled_bento_store: Path, start: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    with start(filled_bento_store, SERVING_WORKERS="1") as service:
        wait_for_ready_line(tmp_path / "service.log")
        (killed,) = workers(service)
        killed.kill()
        wait_until(lambda: [worker for worker in workers(service) if worker.pid != killed.pid])
        wait_until(lambda: answers(service))


def answers(service: Service) -> bool:
    """Return whether the service answers; a connection to the killed worker is reset."""
    with suppress(httpx.TransportError):
        return service.ask("GET", "/model").status_code == 200
    return False


def test_a_service_that_never_was_ready_ends(bento_store: Path) -> None:
    done = subprocess.run(bento.serve_command("no:such", port=0), capture_output=True, text=True)
    assert done.returncode == 1
    assert "no:such cannot be served" in done.stderr
    assert "it ended before it was ready" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    (tmp_path / "file").touch()
    command = bento.serve_command("no:such", port=0)
    command[-1] = str(tmp_path / "file" / "counts")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{command[-1]}'; make the folder writable, or set BENTOML_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stopped_service_leaves_nothing_behind(
    filled_bento_store: Path, start: Callable[..., AbstractContextManager[Service]]
) -> None:
    with start(filled_bento_store) as service:
        (counts,) = (filled_bento_store / "metrics").glob(f"*-{service.address.rpartition(':')[2]}")
        processes = service.processes()
        service.process.terminate()
        assert psutil.wait_procs(processes, timeout=LIMIT)[1] == []
        assert not counts.exists()


def test_an_ipv6_address_is_served(
    filled_bento_store: Path, start: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    with start(filled_bento_store, host="::1") as service:
        assert service.ask("GET", "/model").status_code == 200
        wait_for_ready_line(tmp_path / "service.log")
        assert f"{service.tag} on {service.address}, Ctrl-C ends it" in (tmp_path / "service.log").read_text()


def test_the_same_champion_answers_after_everything_was_deleted_and_restored(
    filled_bento_store: Path,
    service: Service,
    start: Callable[..., AbstractContextManager[Service]],
    encode: Callable[..., bytes],
    workspace: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store, file = workspace / ".bentoml", tmp_path_factory.mktemp("backups") / "backup.tar.gz"
    shutil.copytree(filled_bento_store, store, ignore=shutil.ignore_patterns("metrics"))
    backup.backup(file, lambda _: None)
    shutil.rmtree(store)
    backup.restore(file, say=lambda _: None)
    with start(store) as restored:
        answers = [each.ask("POST", "/predict", files={"image": encode()}).json() for each in (service, restored)]
    assert [{**answer, "answer_id": ""} for answer in answers[:1]] == [{**answers[1], "answer_id": ""}]


def wait_for_ready_line(log: Path) -> None:
    """Wait until the program knows that its service is ready; this test may know it earlier."""
    wait_until(lambda: "ready after" in log.read_text())
