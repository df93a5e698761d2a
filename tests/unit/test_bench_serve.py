"""The benchmark of the service: its arithmetic, and that its clients count every answer."""

import argparse
import email
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bench_serve
import load
import pytest
import services

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "batches": {"http": 900.0, "best": 1000.0},
    "equal_argmax": {"in_batches": "360/360", "one_by_one": "360/360"},
    "cold_start_seconds": [2.0, 9.0, 3.0],
}


class Handler(BaseHTTPRequestHandler):
    """Notes what comes, and answers it, but for one in three under /sometimes and all under /cut.

    Under /uneven it takes its time over the second, and closes each connection after its answer.
    """

    protocol_version = "HTTP/1.1"
    came: list[int]

    def do_POST(self) -> None:
        self.came.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path == "/cut":
            self.close_connection = True
            return
        if self.path == "/uneven":
            time.sleep(0.2 * (len(self.came) == 2))
            self.close_connection = True
        self.send_response(503 if self.path == "/sometimes" and len(self.came) % 3 == 1 else 200)
        self.send_header("content-length", "100000")
        self.end_headers()
        self.wfile.write(b"a" * 50_000)
        self.wfile.write(b"b" * 50_000)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[tuple[int, list[int]]]:
    """The port of a tiny server, and the lengths of the bodies that came to it."""
    handler = type("Noting", (Handler,), {"came": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening.server_address[1], handler.came
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("share", "expected"), [(50, 2.0), (95, 4.0), (99, 4.0), (25, 1.0), (100, 4.0)])
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(share, expected):
    assert load.percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_where_nobody_answered_there_is_no_percentile():
    assert math.isnan(load.percentile([], 50))


def test_a_round_has_a_rate_and_three_percentiles():
    done = load.Round([float(value) for value in range(1, 101)], 4.0, Counter())
    assert done.figures() == {"requests_per_second": 25.0, "p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


def test_the_ratios_are_of_the_medians_with_eight_clients():
    eight = {"ours": [90.0, 80.0, 1.0], "noop": [100.0, 99.0, 500.0], "keras": [8.0], "savedmodel": [40.0]}
    requests = {
        name: {"8": {"requests_per_second": rates, "p99_ms": [12.0 if name == "ours" else 10.0]}}
        for name, rates in eight.items()
    }
    assert bench_serve.ratios(FIGURES | {"requests": requests}) == {
        "requests_to_noop_8_clients": 0.8,
        "requests_to_keras_8_clients": 10.0,
        "requests_to_savedmodel_8_clients": 2.0,
        "batch64_to_best_batch": 0.9,
        "p99_to_noop_8_clients": 1.2,
        "equal_argmax": "360/360",
        "cold_start_seconds": 3.0,
    }


def test_what_was_not_measured_has_no_ratio():
    silent = {"8": {"requests_per_second": [0.0], "p99_ms": [math.nan]}}
    requests = dict.fromkeys(("ours", "noop", "keras", "savedmodel"), silent)
    found = bench_serve.ratios(FIGURES | {"requests": requests, "batches": None, "equal_argmax": None})
    assert {name for name, value in found.items() if value is not None} == {"cold_start_seconds"}


def test_an_answer_that_is_missing_is_not_equal():
    assert bench_serve.equal(["cat", "dog", "dog"], ["cat", "cat"]) == (1, 3)


def test_figures_of_other_recipes_stay(tmp_path: Path):
    results = tmp_path / "serving.json"
    for recipe in ("digits", "cifar10"):
        chosen = argparse.Namespace(recipe=recipe, results=results, seconds=5.0, clients=[1, 8], soak=0)
        bench_serve.keep(chosen, {"ratios": recipe})
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert {name: found["ratios"] for name, found in kept.items()} == {"digits": "digits", "cifar10": "cifar10"}
    assert kept["digits"]["command"].endswith("--recipe digits --seconds 5 --clients 1 8")


def test_the_form_holds_each_file_under_its_name():
    body = load.form("images", [b"one", b"two"])
    found = email.message_from_bytes(f"Content-Type: {load.FORM}\r\n\r\n".encode() + body).get_payload()
    assert [part.get_payload(decode=True) for part in found] == [b"one", b"two"]
    assert {part.get_param("name", header="content-disposition") for part in found} == {"images"}


def test_every_answer_is_counted_once(server):
    port, came = server
    done = load.load(port, load.request(port, "/", load.RAW, b"body"), clients=3, seconds=0.2)
    assert not done.failures
    assert len(done.milliseconds) == len(came) >= 3
    assert set(came) == {4}
    assert all(0 < taken < done.seconds * 1000 for taken in done.milliseconds)


def test_a_request_larger_than_what_a_connection_takes_at_once_arrives_whole(server):
    port, came = server
    done = load.load(port, load.request(port, "/", load.RAW, bytes(20_000_000)), clients=2, seconds=0.05)
    assert not done.failures
    assert set(came) == {20_000_000}


def test_an_answer_that_is_not_200_is_a_failure(server):
    port, came = server
    done = load.load(port, load.request(port, "/sometimes", load.RAW, b"body"), clients=1, seconds=0.1)
    assert done.failures == {"status 503": math.ceil(len(came) / 3)}
    assert len(done.milliseconds) == len(came) - math.ceil(len(came) / 3)


def test_a_connection_that_is_cut_is_a_failure(server):
    port, _ = server
    done = load.load(port, load.request(port, "/cut", load.RAW, b"body"), clients=2, seconds=5)
    assert done.failures == {"the connection was closed": 2}
    assert done.seconds < 5


def test_a_connection_that_is_closed_after_its_last_answer_is_no_failure(server):
    port, came = server
    done = load.load(port, load.request(port, "/uneven", load.RAW, b"body"), clients=2, seconds=0)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == 2


def test_a_service_that_does_not_start_shows_the_end_of_its_log():
    command = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    with (
        pytest.raises(services.BenchError, match=r"^keras ended before it was ready(.|\n)*no model here$"),
        services.running("keras", command, services.free_port(), {}),
    ):
        pass
