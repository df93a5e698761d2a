"""Load generators for a service: clients that wait for answers, and arrivals at a fixed rate.

They implement only the necessary part of HTTP/1.1, because they share the processors with the services.
"""

import http.client
import io
import math
import re
import selectors
import socket
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

HOST = "127.0.0.1"
ANSWER_SECONDS = 30
CONNECTIONS = 512
"""The most open connections at a fixed rate of arrivals. The usual limit of a process is 1,024 open files."""
KEPT = CONNECTIONS
"""Connections that are opened before the first request, as by a reverse proxy.

uvloop accepts one connection per turn of its loop, so under load a new connection waits for seconds.
"""
IDLE_SECONDS = 2
"""A connection that is idle for longer is not reused: the service closes it after five seconds."""
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)
ANSWERED, REFUSED = "status 200", "status 503 with Retry-After"
NO_CONNECTION = f"all {CONNECTIONS} connections were waiting for answers"
FORM = "multipart/form-data; boundary=bench"
RAW = "application/octet-stream"


@dataclass(frozen=True)
class Round:
    """The result of a load test.

    `milliseconds` has the latency of every answer with status 200, `seconds` the length of the test, `failures` the
    number of each other outcome.
    """

    milliseconds: list[float]
    seconds: float
    failures: Counter[str]

    def figures(self) -> dict[str, float]:
        """Return requests per second and latency percentiles; NaN without answers."""
        rates = {"requests_per_second": len(self.milliseconds) / self.seconds}
        return rates | {f"p{share}_ms": percentile(self.milliseconds, share) for share in (50, 95, 99)}


def percentile(values: list[float], share: float) -> float:
    """Return the nearest-rank percentile, NaN without values.

    It is the smallest value that at least `share` % of the values do not exceed.
    """
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)] if values else math.nan


class Client:
    """A connection that repeats a request and reads the answers."""

    def __init__(self, port: int, asked: bytes, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.asked, self.selector, self.events = memoryview(asked), selector, selectors.EVENT_READ
        selector.register(self.socket, self.events, self)

    def ask(self, due: float | None = None) -> None:
        """Start a request. Its latency counts from `due`, by default now."""
        self.unsent, self.answer, self.started = self.asked, b"", due or time.perf_counter()
        self.send()

    def send(self) -> None:
        """Send what the connection accepts now; the selector reports when it takes more."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if events != self.events:
            self.events = events
            self.selector.modify(self.socket, events, self)

    def go_on(self) -> str | None:
        """Return the status of the complete answer, None if it is incomplete.

        Raises OSError or ValueError if the answer is broken or the connection ends.
        """
        if self.unsent:
            self.send()
        with suppress(BlockingIOError):
            part = self.socket.recv(1 << 16)
            if not part:
                raise ConnectionError("the connection was closed")
            self.answer += part
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = LENGTH.search(self.answer, 0, end)
        if not length:
            raise ConnectionError("an answer has no Content-Length")
        if len(self.answer) < end + 4 + int(length[1]):
            return None
        self.ended = time.perf_counter()
        again = " with Retry-After" if RETRY.search(self.answer, 0, end) else ""
        return f"status {int(self.answer[9:12])}{again}"

    def close(self) -> None:
        """End the connection."""
        self.selector.unregister(self.socket)
        self.socket.close()


def load(port: int, asked: bytes, clients: int, seconds: float) -> Round:
    """Run `clients` clients for `seconds`; each repeats its request after its answer.

    It waits for the last answers. Raises OSError if no server listens on the port.
    """
    taken: list[float] = []
    failures: Counter[str] = Counter()
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        asking = {Client(port, asked, selector) for _ in range(clients)}
        for client in asking:
            opened.enter_context(client.socket)
        started = now = time.perf_counter()
        for client in asking:
            client.ask()
        while asking and now < started + seconds + ANSWER_SECONDS:
            for key, _ in selector.select(1):
                client = key.data
                try:
                    status = client.go_on()
                except (OSError, ValueError) as error:
                    failures[str(error)] += 1
                    asking.discard(client)
                    client.close()
                    continue
                if status is None:
                    continue
                now = client.ended
                if status == ANSWERED:
                    taken.append((now - client.started) * 1000)
                else:
                    failures[status] += 1
                if now < started + seconds:
                    client.ask()
                else:  # the service may close idle connections while others wait
                    asking.discard(client)
                    client.close()
            now = time.perf_counter()
    if asking:
        failures[f"no answer in {ANSWER_SECONDS} s"] += len(asking)
    return Round(taken, now - started, failures)


class Arrivals:
    """Requests at a fixed rate that do not wait for earlier answers, each on a free connection.

    A latency counts from the time that the request was due, so that it includes the wait for a busy client or service.
    """

    def __init__(self, port: int, asked: bytes, selector: selectors.BaseSelector) -> None:
        self.port, self.asked, self.selector = port, asked, selector
        self.idle: list[Client] = []  # the longest idle first
        self.busy: set[Client] = set()
        self.taken: list[float] = []
        self.failures: Counter[str] = Counter()

    def open(self, count: int) -> None:
        """Open `count` connections."""
        for _ in range(count):
            client = Client(self.port, self.asked, self.selector)
            client.ended = time.perf_counter()
            self.idle.append(client)

    def send(self, due: float) -> None:
        """Start the request that is due."""
        while self.idle and self.idle[0].ended < due - IDLE_SECONDS:
            self.idle.pop(0).close()
        if not self.idle and len(self.busy) >= CONNECTIONS:
            self.failures[NO_CONNECTION] += 1
            return
        try:
            client = self.idle.pop() if self.idle else Client(self.port, self.asked, self.selector)
        except OSError as error:
            self.failures[str(error)] += 1
            return
        self.busy.add(client)
        try:
            client.ask(due)
        except OSError as error:
            self.fail(client, error)

    def hear(self, seconds: float) -> None:
        """Read the service's answers; wait up to `seconds` for the first."""
        for key, _ in self.selector.select(seconds):
            client = key.data
            if client not in self.busy:  # the service closed an idle connection
                self.idle.remove(client)
                client.close()
                continue
            try:
                status = client.go_on()
            except (OSError, ValueError) as error:
                self.fail(client, error)
                continue
            if status is None:
                continue
            if status == ANSWERED:
                self.taken.append((client.ended - client.started) * 1000)
            else:
                self.failures[status] += 1
            self.busy.discard(client)
            self.idle.append(client)

    def fail(self, client: Client, error: Exception) -> None:
        """Count a failed request and close its connection."""
        self.failures[str(error)] += 1
        self.busy.discard(client)
        client.close()

    def close(self) -> None:
        """Close all connections; waiting requests count as unanswered."""
        if self.busy:
            self.failures[f"no answer in {ANSWER_SECONDS} s"] += len(self.busy)
        for client in [*self.idle, *self.busy]:
            client.close()


def arrivals(port: int, asked: bytes, per_second: float, seconds: float) -> Round:
    """Send `per_second` requests per second for `seconds`, at equal intervals.

    Requests do not wait for answers. The function waits for the last answers.
    """
    planned, sent = max(1, round(per_second * seconds)), 0
    with selectors.DefaultSelector() as selector, closing(Arrivals(port, asked, selector)) as coming:
        coming.open(min(KEPT, CONNECTIONS, planned))
        started = now = time.perf_counter()
        while (sent < planned or coming.busy) and now < started + seconds + ANSWER_SECONDS:
            while sent < planned and (due := started + sent / per_second) <= now:
                coming.send(due)
                sent += 1
            coming.hear(max(0.0, started + sent / per_second - now) if sent < planned else 1)
            now = time.perf_counter()
    return Round(coming.taken, now - started, coming.failures)


def request(port: int, path: str, kind: str, body: bytes) -> bytes:
    """Return the bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(name: str, files: list[bytes]) -> bytes:
    """Return a multipart form (see FORM) with PNG files in the field `name`."""
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="image.png"', "Content-Type: image/png", "", ""]
    head = "\r\n".join(["--bench", *lines]).encode()
    return b"".join(head + file + b"\r\n" for file in files) + b"--bench--\r\n"


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 pixels (height, width, 3) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def post(port: int, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of the answer. Raises OSError if there is none."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
