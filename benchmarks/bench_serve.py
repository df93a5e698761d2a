"""The live Bento over HTTP beside other BentoML services on the same machine, asked with the same image.

`noop` only decodes the image, `keras` calls Model.predict, `savedmodel` a TensorFlow SavedModel (see baselines.py);
`ours` is what `make serve` serves, with a worker for every two cores; the others have one worker, and BentoML's access
log, metrics and tracing as they are by default, which ours has not. All four run at the same time and are asked in
turns, so that a stall of the machine hits them alike; who is not asked does nothing. Whole batches over HTTP are
likewise measured in turns with the artefact in this process. It also compares every test image's answer over HTTP with
the artefact's; labels are not read, so this is no reading of the test images that the gate would have to know of. Keeps
the figures in docs/results/serving.json.
"""

import argparse
import http.client
import io
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keeping
import numpy as np
import orjson
import psutil
from load import FORM, NO_CONNECTION, RAW, REFUSED, Round, arrivals, form, load, png, post, request
from PIL import Image
from services import BASELINES, BATCHING, BenchError, baseline, ours, say
from timing import milliseconds
from tqdm import tqdm

from mobilenet_pipeline import config
from mobilenet_pipeline.data import dataset as images
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import Artefact
from mobilenet_pipeline.release import bento as packaging
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import files, paths

RESULTS = Path("docs/results/serving.json")
PACKAGES = ("bentoml", "tensorflow", "keras", "ai-edge-litert")
TURNS = 5
REFERENCE = 8
"""Clients of the figures that the ratios are made of."""
BATCH = 64
BATCHES, THREADS = (1, 8, 16, 32, 64, 128), (1, 2)
SINGLES = 500
"""Test images that are also sent one by one, as PNG files."""
STARTS = 3
PHOTO = 3000, 4000
"""Height and width of the photograph that is decoded."""
OVERLOAD = (0.5, 1, 2)
"""Times what the service has been seen to answer."""
WARM_SECONDS = 65
"""BentoML keeps a timer a request for `traffic.timeout`, 60 seconds: only then does its memory stop growing."""
TENTHS = 10


FAULTS = (
    BenchError,
    packaging.PackagingError,
    files.WorkspaceError,
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
    soak: int
    failures: list[str] = field(default_factory=list)

    @property
    def artefact(self) -> Path:
        """The LiteRT model that the Bento serves."""
        return self.folder / packaging.MODEL


def main() -> int:
    """Measure, print and keep the figures. Exit status 1 where an answer was wrong or missing: then nothing is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits", help="a section of params.yaml (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="for each service and number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="at a time (default: 1 8 32)")
    parser.add_argument(
        "--soak", type=int, default=0, metavar="N", help="also watch its memory over so many requests (50000 tell)"
    )
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
    show(figures)
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
    metadata = files.read_json(folder / packaging.METADATA)
    trained = paths.model_folder(recipe, metadata["candidate"])
    if not (trained / "model.keras").is_file():
        raise BenchError(f"{trained / 'model.keras'} does not exist; `make run RECIPE={recipe.name}` makes it")
    if files.read_json(trained / "export.json")["sha256"] != metadata["sha256"]:
        say(f"{trained} was trained after the champion: the same network, other weights; it is as fast")
    made_up = not paths.data_folder(recipe).is_dir()
    if made_up:
        say(f"{paths.data_folder(recipe)} is not there: made-up images, and no answers are compared")
        shape = (max(BATCHES), *Artefact(folder / packaging.MODEL).image_shape)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    else:
        dataset = images.open_dataset(paths.data_folder(recipe))
        pixels = np.ascontiguousarray(dataset.images[dataset.is_test])
    clients = sorted({*chosen.clients, REFERENCE})
    return Bench(
        bento.tag, folder, metadata, trained / "model.keras", pixels, made_up, chosen.seconds, clients, chosen.soak
    )


def measure(bench: Bench) -> dict[str, Any]:
    """All raw figures and the ratios. What went wrong is added to `bench.failures`."""
    with tempfile.TemporaryDirectory() as scratch, ours(bench.tag) as (port, _, process):
        requests = one_by_one(bench, port, Path(scratch))
        batching = with_and_without_batching(bench, Path(scratch))
        batches = in_batches(bench, port)
        equal = equal_answers(bench, port) if batches and not bench.made_up else None
        capacity = statistics.median(requests["ours"][str(REFERENCE)]["requests_per_second"])
        crowd = overload(bench, port, capacity)
        memory = watch_memory(bench, port, process, capacity) if bench.soak else None
    starts = []
    for _ in tqdm(range(STARTS), "cold starts"):
        with ours(bench.tag) as (_, seconds, _):
            starts.append(round(seconds, 3))
    figures = {"requests": requests, "batches": batches, "equal_argmax": equal, "cold_start_seconds": starts}
    figures |= {"parts_ms": in_parts(bench), "overload": crowd, "memory": memory, "adaptive_batching": batching}
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


def show(figures: dict[str, Any]) -> None:
    """Print the medians of what the ratios are made of."""
    for name, by_clients in figures["requests"].items():
        for clients, found in by_clients.items():
            rate, *spans = (
                statistics.median(found[key]) for key in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")
            )
            p50, p95, p99 = (f"{span:.2f}" for span in spans)
            print(f"{name:<10} {clients:>3} clients {rate:8.1f} requests/s, p50 {p50}, p95 {p95}, p99 {p99} ms")
    if batches := figures["batches"]:
        one, best = batches["one_image_ms"], batches["best"]
        print(f"in process: one image {one:.3f} ms, best batch {best:,.0f} images/s; over HTTP {batches['http']:,.0f}")


def ratio(one: float, other: float) -> float | None:
    """One by the other; None where a service gave no answer at all."""
    return round(one / other, 3) if other and math.isfinite(one / other) else None


def keep(chosen: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the recipe's figures and where they come from."""
    clients = " ".join(map(str, chosen.clients))
    command = (
        f"python benchmarks/bench_serve.py --recipe {chosen.recipe} --seconds {chosen.seconds:g} --clients {clients}"
    )
    command += f" --soak {chosen.soak}" if chosen.soak else ""
    keeping.keep(chosen.results, chosen.recipe, figures, command, PACKAGES)


def one_by_one(bench: Bench, port: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Requests a second and milliseconds of an answer, {service: {clients: {figure: [a number a turn]}}}."""
    with ExitStack() as running:
        ports = {"ours": port}
        for name in BASELINES:
            ports[name] = running.enter_context(baseline(name, bench.keras, bench.metadata["class_names"], scratch))
        return by_turns(bench, ports, form("image", [png(bench.pixels[0])]), "one image a request")


def with_and_without_batching(bench: Bench, scratch: Path) -> dict[str, dict[str, Any]]:
    """The same figures of two services around the artefact, of which one lets requests wait for each other."""
    with ExitStack() as running:
        ports = {
            name: running.enter_context(baseline(name, bench.artefact, bench.metadata["class_names"], scratch))
            for name in BATCHING
        }
        return by_turns(bench, ports, form("images", [png(bench.pixels[0])]), "adaptive batching")


def by_turns(bench: Bench, ports: Mapping[str, int], payload: bytes, what: str) -> dict[str, dict[str, Any]]:
    """Figures of services that are asked one after the other, again and again."""
    found: dict[str, dict[str, Any]] = {}
    asked = {name: request(ports[name], "/predict", FORM, payload) for name in ports}
    say("warming up")
    for name in ports:  # the first answers trace graphs and fill caches
        load(ports[name], asked[name], max(bench.clients), min(1.0, bench.seconds))
    turns = [(count, name) for _ in range(TURNS) for count in bench.clients for name in ports]
    for count, name in tqdm(turns, what):
        done = load(ports[name], asked[name], count, bench.seconds / TURNS)
        note(bench, f"{name} with {count} clients", done)
        add(found.setdefault(name, {}).setdefault(str(count), {}), done.figures())
    return found


def overload(bench: Bench, port: int, capacity: float) -> list[dict[str, float]]:
    """What comes of requests that do not wait for answers, at multiples of what the service answers 8 clients."""
    if not capacity:  # noted where it was measured
        return []
    asked = request(port, "/predict", FORM, form("image", [png(bench.pixels[0])]))
    rates = []
    for times in tqdm(OVERLOAD, "overload"):
        done = arrivals(port, asked, times * capacity, bench.seconds)
        offered = len(done.milliseconds) + done.failures.total()
        refused, unsent = (done.failures.pop(reason, 0) for reason in (REFUSED, NO_CONNECTION))
        note(bench, f"ours at {times:g} times its capacity", done)
        found = done.figures()
        rates.append(
            {
                "times_capacity": times,
                "offered_per_second": round(offered / bench.seconds, 1),
                "accepted_per_second": round(found["requests_per_second"], 1),
                "refused_share": round(refused / offered, 4),
                "unsent_share": round(unsent / offered, 4),
                "p50_ms": round(found["p50_ms"], 2),
                "p99_ms": round(found["p99_ms"], 2),
            }
        )
    return rates


def watch_memory(bench: Bench, port: int, process: psutil.Process, capacity: float) -> dict[str, Any] | None:
    """MiB that the service's processes hold once warm and after each tenth of the requests.

    `late_growth_mib`, what the last half of them added, tells a leak from a plateau. They come at half the capacity,
    evenly, because what the timers hold goes with the rate.
    """
    if not capacity:  # noted where it was measured
        return None
    asked, rate = request(port, "/predict", FORM, form("image", [png(bench.pixels[0])])), capacity / 2
    say(f"warming up for {WARM_SECONDS} s")
    rounds, held = [arrivals(port, asked, rate, WARM_SECONDS)], [resident(process)]
    for _ in tqdm(range(TENTHS), "memory"):
        rounds.append(arrivals(port, asked, rate, bench.soak / TENTHS / rate))
        held.append(resident(process))
    refused = [done.failures.pop(REFUSED, 0) for done in rounds]  # where the machine stalled
    for done in rounds:
        note(bench, "the long run", done)
    return {
        "requests": sum(len(done.milliseconds) for done in rounds[1:]),
        "refused": sum(refused[1:]),
        "per_second": round(rate, 1),
        "mib": held,
        "late_growth_mib": round(held[-1] - held[TENTHS // 2], 1),
    }


def resident(process: psutil.Process) -> float:
    """MiB of memory that the process and its children hold."""
    return round(sum(each.memory_info().rss for each in process.children(recursive=True)) / 2**20, 1)


def in_batches(bench: Bench, port: int) -> dict[str, Any] | None:
    """Images a second of the service with 64 images a request, and of the artefact in this process, in turns.

    `one_image_ms`: with one thread; `best`: of the batch size and number of threads that reaches most; `http`: what the
    service reaches with 8 clients. None where the live Bento has no such endpoint.
    """
    body = np.resize(bench.pixels, (BATCH, *bench.pixels.shape[1:])).tobytes()
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
                part = np.resize(bench.pixels, (size, *bench.pixels.shape[1:]))
                add(own_rates, {f"{size} images, {threads} threads": rate(artefact, part, bench.seconds / TURNS / 4)})
    return {
        "one_image_ms": round(1000 / statistics.median(own_rates["1 images, 1 threads"]), 4),
        "best": max(statistics.median(rates) for rates in own_rates.values()),
        "http": statistics.median(http_rates[str(REFERENCE)]),
        "http_images_per_second": http_rates,
        "in_process_images_per_second": own_rates,
    }


def in_parts(bench: Bench) -> dict[str, float]:
    """Milliseconds of what the service does for an answer, each alone, on one thread of this process."""
    artefact, names = Artefact(bench.artefact, threads=1), bench.metadata["class_names"]
    small, one = png(bench.pixels[0]), bench.pixels[:1]
    photo = io.BytesIO()
    Image.fromarray(np.resize(bench.pixels, (*PHOTO, 3))).save(photo, "JPEG")
    shares = artefact.predict(one)[0]
    document = {"class": names[0], "confidence": shares[0], "probabilities": dict(zip(names, shares, strict=True))}
    parts: dict[str, Callable[[], object]] = {
        "decode PNG, 32×32": lambda: preprocess.decode(small, one.shape[1]),
        f"decode JPEG, {PHOTO[1]}×{PHOTO[0]}": lambda: preprocess.decode(photo.getvalue(), one.shape[1]),
        "compute": lambda: artefact.predict(one),
        "write JSON": lambda: orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY),
    }
    return {
        name: round(statistics.median(milliseconds(part, bench.seconds / TURNS)), 4) for name, part in parts.items()
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


def add(lists: dict[str, list[float]], figures: dict[str, float]) -> None:
    """Append each figure to the list of its name."""
    for name, figure in figures.items():
        lists.setdefault(name, []).append(round(figure, 3))


def note(bench: Bench, what: str, done: Round) -> None:
    """Add a round's failures to the benchmark's."""
    bench.failures.extend(f"{what}: {count} × {reason}" for reason, count in done.failures.items())


def answer_to(port: int, path: str, kind: str, body: bytes) -> Any:
    """The JSON of the answer. Raises BenchError where it is not 200."""
    status, found = post(port, path, kind, body)
    if status != 200:
        raise BenchError(f"{path} answers {status}: {found[:200].decode(errors='replace')}")
    return json.loads(found)


if __name__ == "__main__":
    sys.exit(main())
