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
import numpy as np
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

    Under /uneven it takes its time over the second, and closes each connection after its answer. Under /slow it answers
    one at a time, and takes its time over each; under /busy it sends all away but the first.
    """

    protocol_version = "HTTP/1.1"
    came: list[int]
    turn: threading.Lock

    def do_POST(self) -> None:
        self.came.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path == "/cut":
            self.close_connection = True
            return
        if self.path == "/uneven":
            time.sleep(0.2 * (len(self.came) == 2))
            self.close_connection = True
        if self.path == "/slow":
            with self.turn:
                time.sleep(0.05)
        busy = self.path == "/busy" and len(self.came) > 1
        self.send_response(503 if busy or (self.path == "/sometimes" and len(self.came) % 3 == 1) else 200)
        if busy:
            self.send_header("Retry-After", "1")
        self.send_header("content-length", "100000")
        self.end_headers()
        self.wfile.write(b"a" * 50_000)
        self.wfile.write(b"b" * 50_000)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[tuple[int, list[int]]]:
    """The port of a tiny server, and the lengths of the bodies that came to it."""
    handler = type("Noting", (Handler,), {"came": [], "turn": threading.Lock()})
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


def test_requests_arrive_at_their_rate_whatever_the_answers_take(server, monkeypatch):
    """The tenth is due after 225 ms, and answered after 500."""
    sent: list[float] = []

    class Noting(load.Client):
        def ask(self, due: float | None = None) -> None:
            sent.append(time.perf_counter())
            super().ask(due)

    monkeypatch.setattr(load, "Client", Noting)
    monkeypatch.setattr(load, "KEPT", 0)  # the server here takes in few at a time
    port, came = server
    started = time.perf_counter()
    done = load.arrivals(port, load.request(port, "/slow", load.RAW, b"body"), per_second=40, seconds=0.25)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == len(sent) == 10
    assert all(at - started >= index / 40 for index, at in enumerate(sent))
    assert sent[-1] - started < 0.45 < 0.5 <= done.seconds


def test_waiting_counts_from_when_a_request_was_due(server):
    """One every 25 ms and 50 ms for each: the tenth is due after 225 ms and answered after 500."""
    port, _ = server
    done = load.arrivals(port, load.request(port, "/slow", load.RAW, b"body"), per_second=40, seconds=0.25)
    assert max(done.milliseconds) >= 270
    assert min(done.milliseconds) >= 50


def test_waiting_for_a_connection_counts_too(server, monkeypatch):
    class Late(load.Client):
        def __init__(self, *arguments: object) -> None:
            time.sleep(0.1)
            super().__init__(*arguments)

    monkeypatch.setattr(load, "Client", Late)
    monkeypatch.setattr(load, "KEPT", 0)
    port, _ = server
    done = load.arrivals(port, load.request(port, "/", load.RAW, b"body"), per_second=1000, seconds=0.003)
    assert len(done.milliseconds) == 3
    assert min(done.milliseconds) >= 100


def test_a_request_without_a_free_connection_fails_for_a_reason_of_its_own(server, monkeypatch):
    monkeypatch.setattr(load, "CONNECTIONS", 2)
    port, came = server
    done = load.arrivals(port, load.request(port, "/slow", load.RAW, b"body"), per_second=1000, seconds=0.02)
    assert done.failures == {load.NO_CONNECTION: 20 - len(came)}
    assert len(done.milliseconds) == len(came) < 20


def test_who_is_sent_away_to_come_again_is_refused(server):
    port, came = server
    done = load.arrivals(port, load.request(port, "/busy", load.RAW, b"body"), per_second=200, seconds=0.05)
    assert done.failures == {load.REFUSED: 9}
    assert len(done.milliseconds) == 1
    assert len(came) == 10


def test_connections_that_the_service_closes_when_idle_are_no_failure(server):
    port, came = server
    done = load.arrivals(port, load.request(port, "/uneven", load.RAW, b"body"), per_second=40, seconds=0.1)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == 4


def test_a_cut_connection_fails_its_request_only(server):
    port, _ = server
    done = load.arrivals(port, load.request(port, "/cut", load.RAW, b"body"), per_second=100, seconds=0.03)
    assert done.failures == {"the connection was closed": 3}
    assert not done.milliseconds


def test_overload_offers_multiples_of_the_capacity_and_tells_refusals_from_failures(monkeypatch):
    monkeypatch.setattr(bench_serve, "arrivals", refuse_beyond_100)
    bench = a_bench(seconds=2.0)
    found = bench_serve.overload(bench, 80, 100.0)
    assert [row["offered_per_second"] for row in found] == [50.0, 100.0, 200.0]
    assert [row["accepted_per_second"] for row in found] == [50.0, 100.0, 100.0]
    assert [row["refused_share"] for row in found] == [0.0, 0.0, 0.5]
    assert not bench.failures


def test_overload_tells_what_no_connection_was_free_for(monkeypatch):
    monkeypatch.setattr(
        bench_serve, "arrivals", lambda *_: load.Round([1.0] * 3, 1.0, Counter({load.NO_CONNECTION: 1}))
    )
    bench = a_bench(seconds=1.0)
    assert [row["unsent_share"] for row in bench_serve.overload(bench, 80, 100.0)] == [0.25] * 3
    assert not bench.failures


def test_overload_notes_what_fails_otherwise(monkeypatch):
    lost = load.Round([1.0], 1.0, Counter({"the connection was closed": 2, load.REFUSED: 1, "status 503": 1}))
    monkeypatch.setattr(bench_serve, "arrivals", lambda *_: load.Round(lost.milliseconds, 1.0, Counter(lost.failures)))
    bench = a_bench(seconds=1.0)
    bench_serve.overload(bench, 80, 100.0)
    assert "ours at 2 times its capacity: 2 × the connection was closed" in bench.failures
    assert "ours at 2 times its capacity: 1 × status 503" in bench.failures
    assert len(bench.failures) == 6


@pytest.mark.parametrize(("held", "late"), [([9.0, *range(10, 20)], 5.0), ([9.0, *[12.5] * 10], 0.0)])
def test_the_growth_over_the_last_half_tells_a_leak_from_a_plateau(monkeypatch, held, late):
    monkeypatch.setattr(bench_serve, "arrivals", refuse_beyond_100)
    left = iter(held)
    monkeypatch.setattr(bench_serve, "resident", lambda _: next(left))
    found = bench_serve.watch_memory(a_bench(soak=1000), 80, None, 100.0)
    told = {"requests": 1000, "refused": 0, "per_second": 50.0}
    assert found == {**told, "mib": held, "late_growth_mib": late}


def a_bench(**changes: object) -> bench_serve.Bench:
    """A benchmark of nothing in particular."""
    usual = {"tag": "", "folder": Path(), "metadata": {}, "keras": Path(), "made_up": True, "seconds": 1.0, "soak": 0}
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    return bench_serve.Bench(**{**usual, "pixels": pixels, "clients": [8], **changes})


def refuse_beyond_100(port: int, asked: bytes, per_second: float, seconds: float) -> load.Round:
    """What comes of requests to a service that answers 100 a second."""
    accepted = round(min(per_second, 100) * seconds)
    return load.Round([1.0] * accepted, seconds, Counter({load.REFUSED: round(per_second * seconds) - accepted}))


def test_a_service_that_does_not_start_shows_the_end_of_its_log():
    command = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    with (
        pytest.raises(services.BenchError, match=r"^keras ended before it was ready(.|\n)*no model here$"),
        services.running("keras", command, services.free_port(), {}),
    ):
        pass
