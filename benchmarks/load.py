"""Clients that ask a service again and again, and what came of it.

The least of HTTP/1.1 that will do, for what the clients take of the processors is taken from the services.
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
"""That are open at most where requests do not wait for answers; a process may usually have 1,024 files open."""
KEPT = CONNECTIONS
"""That are opened beforehand, as a proxy before the service has them: uvloop takes in one a turn of its loop, and in a
crowd those that are new wait for seconds."""
IDLE_SECONDS = 2
"""A connection that is idle for longer is not used again: the service closes it after five, maybe just then."""
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)
ANSWERED, REFUSED = "status 200", "status 503 with Retry-After"
NO_CONNECTION = f"all {CONNECTIONS} connections were waiting for answers"
FORM = "multipart/form-data; boundary=bench"
RAW = "application/octet-stream"


@dataclass(frozen=True)
class Round:
    """What came of asking for a while: milliseconds of every answer that was 200, seconds of the whole, failures."""

    milliseconds: list[float]
    seconds: float
    failures: Counter[str]

    def figures(self) -> dict[str, float]:
        """Requests a second and percentiles of the milliseconds; NaN where there was no answer."""
        rates = {"requests_per_second": len(self.milliseconds) / self.seconds}
        return rates | {f"p{share}_ms": percentile(self.milliseconds, share) for share in (50, 95, 99)}


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` % of the values do not exceed (nearest rank); NaN of none."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)] if values else math.nan


class Client:
    """A connection that sends the same request again and again, and reads the answers."""

    def __init__(self, port: int, asked: bytes, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.asked, self.selector, self.events = memoryview(asked), selector, selectors.EVENT_READ
        selector.register(self.socket, self.events, self)

    def ask(self, due: float | None = None) -> None:
        """Begin a request, which was due at that time or is now."""
        self.unsent, self.answer, self.started = self.asked, b"", due or time.perf_counter()
        self.send()

    def send(self) -> None:
        """Send what the connection takes now; the selector tells when it takes more."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if events != self.events:
            self.events = events
            self.selector.modify(self.socket, events, self)

    def go_on(self) -> str | None:
        """The answer's status, once it is whole. Raises OSError or ValueError where it cannot become so."""
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
    """Let so many clients ask for so long, each again as soon as it has its answer; waits for the last answers.

    Raises OSError where nobody listens.
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
                else:  # the service may close what is idle while the others wait
                    asking.discard(client)
                    client.close()
            now = time.perf_counter()
    if asking:
        failures[f"no answer in {ANSWER_SECONDS} s"] += len(asking)
    return Round(taken, now - started, failures)


class Arrivals:
    """Requests that come at a fixed rate, whatever becomes of those before, each over a connection that is free.

    Milliseconds count from when a request was due, not from when it was sent: who waits for a busy client or a busy
    service has waited.
    """

    def __init__(self, port: int, asked: bytes, selector: selectors.BaseSelector) -> None:
        self.port, self.asked, self.selector = port, asked, selector
        self.idle: list[Client] = []  # the longest idle first
        self.busy: set[Client] = set()
        self.taken: list[float] = []
        self.failures: Counter[str] = Counter()

    def open(self, count: int) -> None:
        """Have so many connections ready."""
        for _ in range(count):
            client = Client(self.port, self.asked, self.selector)
            client.ended = time.perf_counter()
            self.idle.append(client)

    def send(self, due: float) -> None:
        """Begin the request that is due."""
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
        """Take what the service sends, and wait for so long until it does."""
        for key, _ in self.selector.select(seconds):
            client = key.data
            if client not in self.busy:  # the service closes what is idle
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
        """Give the request and its connection up."""
        self.failures[str(error)] += 1
        self.busy.discard(client)
        client.close()

    def close(self) -> None:
        """End all connections; who still waits has no answer."""
        if self.busy:
            self.failures[f"no answer in {ANSWER_SECONDS} s"] += len(self.busy)
        for client in [*self.idle, *self.busy]:
            client.close()


def arrivals(port: int, asked: bytes, per_second: float, seconds: float) -> Round:
    """Send so many requests a second for so long, evenly, whether there are answers or not; waits for the last."""
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
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(name: str, files: list[bytes]) -> bytes:
    """The body of a multipart form (see FORM) with these PNG files in the field `name`."""
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="image.png"', "Content-Type: image/png", "", ""]
    head = "\r\n".join(["--bench", *lines]).encode()
    return b"".join(head + file + b"\r\n" for file in files) + b"--bench--\r\n"


def png(pixels: np.ndarray) -> bytes:
    """An image file of uint8 (height, width, 3)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def post(port: int, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer. Raises OSError where there is none."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        found = connection.getresponse()
        return found.status, found.read()
    finally:
        connection.close()
