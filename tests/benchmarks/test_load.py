"""The clients of the service benchmark count every answer."""

import email
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import load
import pytest


class Handler(BaseHTTPRequestHandler):
    """Records every request and answers it.

    One request in three fails under /sometimes, and all fail under /cut. Under /uneven the second answer is late, and
    each connection is closed after its answer. Under /slow answers come one at a time and late, under /together when
    ten requests have come; under /busy all requests but the first are refused.
    """

    protocol_version = "HTTP/1.1"
    came: list[int]
    turn: threading.Lock
    ten: threading.Barrier

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
        if self.path == "/together":
            self.ten.wait()
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
    """The port of a tiny server, and the lengths of the bodies that it received."""
    handler = type("Noting", (Handler,), {"came": [], "turn": threading.Lock(), "ten": threading.Barrier(10)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening.server_address[1], handler.came
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("share", "expected"), [(50, 2.0), (95, 4.0), (99, 4.0), (25, 1.0), (100, 4.0)])
def test_a_percentile_is_one_of_the_values(share, expected):
    assert load.percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_without_answers_there_is_no_percentile():
    assert math.isnan(load.percentile([], 50))


def test_a_round_has_a_rate_and_three_percentiles():
    done = load.Round([float(value) for value in range(1, 101)], 4.0, Counter())
    assert done.figures() == {"requests_per_second": 25.0, "p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


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


def test_a_request_larger_than_a_socket_buffer_arrives_whole(server):
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
    done = load.load(port, load.request(port, "/cut", load.RAW, b"body"), clients=2, seconds=3600)
    assert done.failures == {"the connection was closed": 2}


def test_a_connection_closed_after_its_answer_is_no_failure(server):
    port, came = server
    done = load.load(port, load.request(port, "/uneven", load.RAW, b"body"), clients=2, seconds=0)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == 2


def test_requests_arrive_at_their_rate_despite_slow_answers(server, monkeypatch):
    """No answer comes before the tenth request."""
    sent: list[float] = []

    class Noting(load.Client):
        def ask(self, due: float | None = None) -> None:
            sent.append(time.perf_counter())
            super().ask(due)

    monkeypatch.setattr(load, "Client", Noting)
    monkeypatch.setattr(load, "KEPT", 0)  # the server here takes in few at a time
    port, came = server
    started = time.perf_counter()
    done = load.arrivals(port, load.request(port, "/together", load.RAW, b"body"), per_second=40, seconds=0.25)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == len(sent) == 10
    assert all(at - started >= index / 40 for index, at in enumerate(sent))


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


def test_a_missing_connection_is_a_reason_of_its_own(server, monkeypatch):
    monkeypatch.setattr(load, "CONNECTIONS", 2)
    port, came = server
    done = load.arrivals(port, load.request(port, "/slow", load.RAW, b"body"), per_second=1000, seconds=0.02)
    assert done.failures == {load.NO_CONNECTION: 20 - len(came)}
    assert len(done.milliseconds) == len(came) < 20


def test_a_503_with_retry_after_is_a_refusal(server):
    port, came = server
    done = load.arrivals(port, load.request(port, "/busy", load.RAW, b"body"), per_second=200, seconds=0.05)
    assert done.failures == {load.REFUSED: 9}
    assert len(done.milliseconds) == 1
    assert len(came) == 10


def test_idle_connections_closed_by_the_service_are_no_failure(server):
    port, came = server
    done = load.arrivals(port, load.request(port, "/uneven", load.RAW, b"body"), per_second=40, seconds=0.1)
    assert not done.failures
    assert len(done.milliseconds) == len(came) == 4


def test_a_cut_connection_fails_its_request_only(server):
    port, _ = server
    done = load.arrivals(port, load.request(port, "/cut", load.RAW, b"body"), per_second=100, seconds=0.03)
    assert done.failures == {"the connection was closed": 3}
    assert not done.milliseconds
