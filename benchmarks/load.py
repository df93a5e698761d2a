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
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

HOST = "127.0.0.1"
ANSWER_SECONDS = 30
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
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

    def ask(self) -> None:
        """Begin a request."""
        self.unsent, self.answer, self.started = self.asked, b"", time.perf_counter()
        self.send()

    def send(self) -> None:
        """Send what the connection takes now; the selector tells when it takes more."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if events != self.events:
            self.events = events
            self.selector.modify(self.socket, events, self)

    def receive(self) -> int | None:
        """The status of the answer, once it is whole. Raises ConnectionError where it cannot become so."""
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
        return int(self.answer[9:12]) if len(self.answer) >= end + 4 + int(length[1]) else None


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
                    if client.unsent:
                        client.send()
                    status = client.receive()
                except (OSError, ValueError) as error:
                    failures[str(error)] += 1
                    asking.discard(client)
                    selector.unregister(client.socket)
                    continue
                if status is None:
                    continue
                now = time.perf_counter()
                if status == 200:
                    taken.append((now - client.started) * 1000)
                else:
                    failures[f"status {status}"] += 1
                if now < started + seconds:
                    client.ask()
                else:  # the service may close what is idle while the others wait
                    asking.discard(client)
                    selector.unregister(client.socket)
            now = time.perf_counter()
    if asking:
        failures[f"no answer in {ANSWER_SECONDS} s"] += len(asking)
    return Round(taken, now - started, failures)


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
