"""The live Bento over HTTP beside other BentoML services on the same machine, with the same image and one worker each.

`noop` only decodes the image, `keras` calls Model.predict, `savedmodel` a TensorFlow SavedModel (see baselines.py);
`ours` is what `make serve` serves. All four run at the same time and are asked in turns, so that a stall of the machine
hits them alike; who is not asked does nothing. Whole batches over HTTP are likewise measured in turns with the artefact
in this process. It also compares every test image's answer over HTTP with the artefact's; labels are not read, so this
is no reading of the test images that the gate would have to know of. Keeps the figures in docs/results/serving.json.
"""

import argparse
import http.client
import importlib.metadata
import io
import json
import math
import os
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from mobilenet_pipeline import config, environment, images, layout, packaging, pipeline, provenance
from mobilenet_pipeline.artefact import Artefact
from serving import check

RESULTS = Path("docs/results/serving.json")
BASELINES = {"noop": "Noop", "keras": "KerasPredict", "savedmodel": "SavedModel"}
PACKAGES = ("bentoml", "tensorflow", "keras", "ai-edge-litert")
HOST = "127.0.0.1"
TURNS = 5
REFERENCE = 8
"""Clients of the figures that the ratios are made of."""
BATCH = 64
BATCHES, THREADS = (1, 8, 16, 32, 64, 128), (1, 2)
SINGLES = 500
"""Test images that are also sent one by one, as PNG files."""
STARTS = 3
START_SECONDS, ANSWER_SECONDS, EXPORT_SECONDS = 120, 30, 300
LOG_LINES = 25
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
FORM = "multipart/form-data; boundary=bench"
RAW = "application/octet-stream"


class BenchError(Exception):
    """There is nothing to measure, or a service does not start; a sentence for people."""


FAULTS = (
    BenchError,
    packaging.PackagingError,
    provenance.ProvenanceError,
    images.DatasetError,
    OSError,
    http.client.HTTPException,
    subprocess.SubprocessError,
)


@dataclass(frozen=True)
class Bench:
    """What is measured: the live Bento, the folder of its champion, the champion's metadata and Keras model.

    `pixels` are the recipe's test images uint8 (n, 32, 32, 3), or made-up ones where `made_up`.
    """

    tag: str
    folder: Path
    metadata: dict[str, Any]
    keras: Path
    pixels: np.ndarray
    made_up: bool
    seconds: float
    clients: list[int]
    failures: list[str] = field(default_factory=list)

    @property
    def artefact(self) -> Path:
        """The LiteRT model that the Bento serves."""
        return self.folder / packaging.MODEL


def main() -> int:
    """Measure, print and keep the figures. Exit status 1 where an answer was wrong or missing: then nothing is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits", help="a section of params.yaml (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="for each service and number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="at a time (default: 1 8 32)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    chosen = parser.parse_args()
    environment.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # who is told to end leaves no temporary folder
    try:
        bench = prepare(chosen)
        figures = measure(bench)
    except FAULTS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for failure in bench.failures:
        print(f"error: {failure}", file=sys.stderr)
    if not bench.failures:
        keep(chosen, figures)
    print(json.dumps(figures["ratios"]))
    return 1 if bench.failures else 0


def prepare(chosen: argparse.Namespace) -> Bench:
    """What there is to measure. Raises PackagingError or BenchError with the remedy where something is missing."""
    recipe = config.load_recipe(chosen.recipe)
    bento = packaging.must_be_live(recipe)
    folder = packaging.served_models(recipe)["champion"]
    if folder is None:
        raise BenchError(f"{bento} serves no champion")
    metadata = provenance.read_json(folder / packaging.METADATA)
    trained = layout.model_folder(recipe, metadata["candidate"])
    if not (trained / "model.keras").is_file():
        raise BenchError(f"{trained / 'model.keras'} does not exist; `make run RECIPE={recipe.name}` makes it")
    if provenance.read_json(trained / "export.json")["sha256"] != metadata["sha256"]:
        say(f"{trained} was trained after the champion: the same network, other weights; it is as fast")
    made_up = not layout.data_folder(recipe).is_dir()
    if made_up:
        say(f"{layout.data_folder(recipe)} is not there: made-up images, and no answers are compared")
        pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *images.IMAGE_SHAPE), dtype=np.uint8)
    else:
        dataset = images.open_dataset(layout.data_folder(recipe))
        pixels = np.ascontiguousarray(dataset.images[dataset.is_test])
    clients = sorted({*chosen.clients, REFERENCE})
    return Bench(bento.tag, folder, metadata, trained / "model.keras", pixels, made_up, chosen.seconds, clients)


def measure(bench: Bench) -> dict[str, Any]:
    """All raw figures and the ratios. What went wrong is added to `bench.failures`."""
    with tempfile.TemporaryDirectory() as scratch, ours(bench) as (port, _):
        requests = one_by_one(bench, port, Path(scratch))
        batches = in_batches(bench, port)
        equal = equal_answers(bench, port) if batches and not bench.made_up else None
    starts = []
    for _ in tqdm(range(STARTS), "cold starts"):
        with ours(bench) as (_, seconds):
            starts.append(round(seconds, 3))
    figures = {"requests": requests, "batches": batches, "equal_argmax": equal, "cold_start_seconds": starts}
    what = {"bento": bench.tag, "candidate": bench.metadata["candidate"]}
    return {"ratios": ratios(figures), **what, **figures}


def ratios(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that this ends with, of medians over the turns; null where something was not measured."""
    at_reference = {name: by_clients[str(REFERENCE)] for name, by_clients in figures["requests"].items()}
    rates = {name: statistics.median(found["requests_per_second"]) for name, found in at_reference.items()}
    p99 = {name: statistics.median(found["p99_ms"]) for name, found in at_reference.items()}
    batches, equal = figures["batches"], figures["equal_argmax"]
    return {
        **{f"requests_to_{name}_{REFERENCE}_clients": ratio(rates["ours"], rates[name]) for name in BASELINES},
        f"batch{BATCH}_to_best_batch": ratio(batches["http"], batches["best"]) if batches else None,
        f"p99_to_noop_{REFERENCE}_clients": ratio(p99["ours"], p99["noop"]),
        "equal_argmax": equal["in_batches"] if equal else None,
        "cold_start_seconds": round(statistics.median(figures["cold_start_seconds"]), 2),
    }


def ratio(one: float, other: float) -> float | None:
    """One by the other; None where a service gave no answer at all."""
    return round(one / other, 3) if other and math.isfinite(one / other) else None


def keep(chosen: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the recipe's figures and where they come from; other recipes' stay."""
    document = json.loads(chosen.results.read_text(encoding="utf-8")) if chosen.results.exists() else {}
    clients = " ".join(map(str, chosen.clients))
    document[chosen.recipe] = {
        **figures,
        "command": f"python benchmarks/bench_serve.py --recipe {chosen.recipe} --seconds {chosen.seconds:g} "
        f"--clients {clients}",
        "commit": provenance.git_commit(Path("."))[0],
        "machine": provenance.describe_machine(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }
    layout.write_json(chosen.results, document)


def one_by_one(bench: Bench, port: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Requests a second and milliseconds of an answer, {service: {clients: {figure: [a number a turn]}}}."""
    payload = form("image", [png(bench.pixels[0])])
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as running:
        ports = {"ours": port}
        for name in BASELINES:
            ports[name] = running.enter_context(baseline(bench, name, scratch))
        asked = {name: request(ports[name], "/predict", FORM, payload) for name in ports}
        say("warming up")
        for name in ports:  # the first answers trace graphs and fill caches
            load(ports[name], asked[name], max(bench.clients), min(1.0, bench.seconds))
        turns = [(count, name) for _ in range(TURNS) for count in bench.clients for name in ports]
        for count, name in tqdm(turns, "one image a request"):
            done = load(ports[name], asked[name], count, bench.seconds / TURNS)
            note(bench, f"{name} with {count} clients", done)
            add(found.setdefault(name, {}).setdefault(str(count), {}), done.figures())
    return found


def in_batches(bench: Bench, port: int) -> dict[str, Any] | None:
    """Images a second of the service with 64 images a request, and of the artefact in this process, in turns.

    `one_image_ms`: with one thread; `best`: of the batch size and number of threads that reaches most; `http`: what the
    service reaches with 8 clients. None where the live Bento has no such endpoint.
    """
    body = np.resize(bench.pixels, (BATCH, *images.IMAGE_SHAPE)).tobytes()
    status, _ = post(port, "/predict_batch", RAW, body)
    if status != 200:
        bench.failures.append(f"{bench.tag} answers /predict_batch with {status}: is it older than this endpoint?")
        return None
    asked = request(port, "/predict_batch", RAW, body)
    artefacts = {threads: Artefact(bench.artefact, threads) for threads in THREADS}
    http_rates: dict[str, list[float]] = {}
    own_rates: dict[str, list[float]] = {}
    for _ in tqdm(range(TURNS), "64 images a request"):
        for count in bench.clients:
            done = load(port, asked, count, bench.seconds / TURNS)
            note(bench, f"batches with {count} clients", done)
            add(http_rates, {str(count): done.figures()["requests_per_second"] * BATCH})
        for threads, artefact in artefacts.items():
            for size in BATCHES:
                part = np.resize(bench.pixels, (size, *images.IMAGE_SHAPE))
                add(own_rates, {f"{size} images, {threads} threads": rate(artefact, part, bench.seconds / TURNS / 4)})
    return {
        "one_image_ms": round(1000 / statistics.median(own_rates["1 images, 1 threads"]), 4),
        "best": max(statistics.median(rates) for rates in own_rates.values()),
        "http": statistics.median(http_rates[str(REFERENCE)]),
        "http_images_per_second": http_rates,
        "in_process_images_per_second": own_rates,
    }


def rate(artefact: Artefact, pixels: np.ndarray, seconds: float) -> float:
    """Images a second of batches like this one."""
    artefact.predict(pixels)  # allocates
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds or not count:
        artefact.predict(pixels)
        count += len(pixels)
    return count / taken


def equal_answers(bench: Bench, port: int) -> dict[str, str]:
    """How many test images get the class over HTTP that the artefact gives them here, as "equal/all"."""
    artefact, names = Artefact(bench.artefact), bench.metadata["class_names"]
    expected, batched = [], []
    for start in tqdm(range(0, len(bench.pixels), BATCH), "answers in batches"):
        part = bench.pixels[start : start + BATCH]
        expected += [names[best] for best in artefact.predict(part).argmax(-1)]
        batched += [each.get("class") for each in answer_to(port, "/predict_batch", RAW, part.tobytes())["predictions"]]
    singles = [
        answer_to(port, "/predict", FORM, form("image", [png(each)]))["class"]
        for each in tqdm(bench.pixels[:SINGLES], "answers one by one")
    ]
    counts = {"in_batches": equal(expected, batched), "one_by_one": equal(expected[: len(singles)], singles)}
    for way, (same, of) in counts.items():
        if same != of:
            bench.failures.append(f"{of - same} of {of} answers {way} are not the artefact's")
    return {way: f"{same}/{of}" for way, (same, of) in counts.items()}


def equal(expected: list[str], found: list[str]) -> tuple[int, int]:
    """How many are equal, of how many that are expected."""
    return sum(one == other for one, other in zip(expected, found, strict=False)), len(expected)


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


def add(lists: dict[str, list[float]], figures: dict[str, float]) -> None:
    """Append each figure to the list of its name."""
    for name, figure in figures.items():
        lists.setdefault(name, []).append(round(figure, 3))


def note(bench: Bench, what: str, done: Round) -> None:
    """Add a round's failures to the benchmark's."""
    bench.failures.extend(f"{what}: {count} × {reason}" for reason, count in done.failures.items())


class Client:
    """A connection that sends the same request again and again, and reads the answers.

    The least of HTTP/1.1 that will do, for what the clients take of the processors is taken from the services.
    """

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


def answer_to(port: int, path: str, kind: str, body: bytes) -> Any:
    """The JSON of the answer. Raises BenchError where it is not 200."""
    status, found = post(port, path, kind, body)
    if status != 200:
        raise BenchError(f"{path} answers {status}: {found[:200].decode(errors='replace')}")
    return json.loads(found)


@contextmanager
def ours(bench: Bench) -> Iterator[tuple[int, float]]:
    """Serve the live Bento until the block ends; its port, and the seconds that it took to be ready."""
    port = free_port()
    try:
        with running("ours", packaging.serve_command(bench.tag, HOST, port), port, dict(os.environ)) as seconds:
            yield port, seconds
    finally:
        shutil.rmtree(packaging.home() / "servers" / str(port), ignore_errors=True)


@contextmanager
def baseline(bench: Bench, name: str, scratch: Path) -> Iterator[int]:
    """Serve a baseline until the block ends, with a BentoML home of its own; its port."""
    code, port, model = Path(__file__).with_name("baselines.py"), free_port(), bench.keras
    if name == "savedmodel":
        model = scratch / "saved"
        say("exporting the SavedModel")
        export = [sys.executable, str(code), str(bench.keras), str(model)]
        done = subprocess.run(export, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
        if done.returncode:
            raise BenchError(f"{bench.keras} cannot be exported: {done.stderr[-2000:]}")
    target = f"{code.stem}:{BASELINES[name]}"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--working-dir", str(code.parent)]
    home = scratch / name
    home.mkdir()
    known = {"BENTOML_HOME": str(home), "BENCH_MODEL": str(model.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    variables = {**os.environ, **known, "BENCH_CLASSES": json.dumps(bench.metadata["class_names"])}
    with running(name, [*command, "--host", HOST, "--port", str(port)], port, variables):
        yield port


@contextmanager
def running(name: str, command: list[str], port: int, variables: dict[str, str]) -> Iterator[float]:
    """Run a service until the block ends; the seconds from its start to the first 200 of /readyz.

    Raises BenchError with the end of its log where it does not get there.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # On a leash: it ends with this process, however that ends.
        child = stack.enter_context(pipeline.leashed(command, variables, stdin=subprocess.DEVNULL, stdout=log))
        try:
            seconds = wait_until_ready(child, port)
        except BenchError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise BenchError("\n".join([f"{name} {error}; the end of its log:", *tail])) from None
        say(f"{name} is ready after {seconds:.1f} s")
        yield seconds


def wait_until_ready(child: pipeline.Leashed, port: int) -> float:
    """Seconds from the service's first process to the first 200 of /readyz. Raises BenchError."""
    holder, workers = psutil.Process(child.pid), set()
    while not child.ended and not holder.children():  # what holds the leash is no part of the service
        time.sleep(0.005)
    started = looked = time.perf_counter()
    while (now := time.perf_counter()) < started + START_SECONDS:
        if child.ended:
            raise BenchError("ended before it was ready")
        try:
            check.ask(f"http://{HOST}:{port}/readyz", seconds=1)
            return time.perf_counter() - started
        except OSError:
            time.sleep(0.02)
        if now > looked + 1:  # seldom: looking takes time from the service
            looked = now
            workers |= {each for each in holder.children(recursive=True) if check.is_worker(each)}
            if not all(check.is_worker(each) for each in workers):
                raise BenchError("has a worker that ended before it was ready")
    raise BenchError(f"was not ready after {START_SECONDS} s")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def say(line: str) -> None:
    """A line of progress."""
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
