"""Compare the live Bento over HTTP with other BentoML services on the same machine and the same image.

`noop` only decodes the image, `keras` calls Model.predict, `savedmodel` calls a TensorFlow SavedModel (see
baselines.py). `ours` is what `make serve` serves, with a worker for every two cores. The others have one worker, and
BentoML's default access log, metrics and tracing, which `ours` does not have. All four run at the same time and get
requests in turn, so that other load on the machine affects all of them; a service without requests is idle. Batches
over HTTP are measured in turn with the artefact in this process, too.

The program also compares the answer of every test image over HTTP with the artefact's. It reads no labels, so the gate
does not count this as a read of the test images. The results are written to docs/results/serving.json.
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
"""Number of clients for the ratios."""
BATCH = 64
BATCHES, THREADS = (1, 8, 16, 32, 64, 128), (1, 2)
SINGLES = 500
"""Number of test images that are also sent one by one, as PNG files."""
STARTS = 3
PHOTO = 3000, 4000
"""Height and width of the decoded photo."""
OVERLOAD = (0.5, 1, 2)
"""Offered load, as multiples of the measured capacity."""
WARM_SECONDS = 65
"""Longer than a request of an earlier commit's service kept its timer, so that memory is comparable."""
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
    """The live Bento, the folder of its champion, the champion's metadata and Keras model, and the settings.

    `pixels` are the recipe's test images uint8 (n, 32, 32, 3), or random images if `made_up`.
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
    """Measure the services, print and write the results, and return the exit status.

    It is 1, and nothing is written, if an answer was wrong or missing.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits", help="a section of params.yaml (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="seconds for each service and number of clients")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 32], help="numbers of clients (default: 1 8 32)"
    )
    parser.add_argument(
        "--soak", type=int, default=0, metavar="N", help="also measure its memory over N requests (50000 show a leak)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    chosen = parser.parse_args()
    environment.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exit normally, so that temporary folders are deleted
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
    """Return the inputs of the benchmark.

    Raises PackagingError or BenchError, with the remedy, if something is missing.
    """
    recipe = config.load_recipe(chosen.recipe)
    bento = packaging.must_be_live(recipe)
    folder = packaging.served_models(recipe)["champion"]
    if folder is None:
        raise BenchError(f"{bento} serves no champion")
    metadata = files.read_json(folder / packaging.METADATA)
    exported = paths.model_folder(recipe, metadata["candidate"])
    trained = paths.model_folder(recipe, artefact_of(recipe, folder).candidate)  # a twin has no model.keras of its own
    if not (trained / "model.keras").is_file():
        raise BenchError(f"{trained / 'model.keras'} does not exist; `make run RECIPE={recipe.name}` makes it")
    if files.read_json(exported / "export.json")["sha256"] != metadata["sha256"]:
        say(f"{trained} was trained after the champion: other weights, but the same speed")
    made_up = not paths.data_folder(recipe).is_dir()
    if made_up:
        say(f"{paths.data_folder(recipe)} is missing: the images are random, and no answers are compared")
        shape = (max(BATCHES), *Artefact(folder / packaging.MODEL).image_shape)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    else:
        dataset = images.open_dataset(paths.data_folder(recipe))
        pixels = np.ascontiguousarray(dataset.images[dataset.is_test])
    clients = sorted({*chosen.clients, REFERENCE})
    return Bench(
        bento.tag, folder, metadata, trained / "model.keras", pixels, made_up, chosen.seconds, clients, chosen.soak
    )


def artefact_of(recipe: config.Recipe, folder: Path) -> config.Artefact:
    """Return what the version in `folder` is. Raises BenchError if the recipe does not have it any more."""
    name = files.read_json(folder / packaging.METADATA)["candidate"]
    if name not in recipe.artefacts:
        raise BenchError(
            f"params.yaml: recipe {recipe.name} has no {name}, which is live; `make run RECIPE={recipe.name}` makes "
            "one of its candidates live"
        )
    return recipe.artefacts[name]


def measure(bench: Bench) -> dict[str, Any]:
    """Return all figures and the ratios. Failures are added to `bench.failures`."""
    with tempfile.TemporaryDirectory() as scratch, ours(bench.tag) as (port, _, process):
        requests = one_by_one(bench, port, Path(scratch))
        batching = with_and_without_batching(bench, Path(scratch))
        batches = in_batches(bench, port)
        equal = equal_answers(bench, port) if batches and not bench.made_up else None
        capacity = statistics.median(requests["ours"][str(REFERENCE)]["requests_per_second"])
        loads = overload(bench, port, capacity)
        memory = watch_memory(bench, port, process, capacity) if bench.soak else None
    starts = []
    for _ in tqdm(range(STARTS), "cold starts"):
        with ours(bench.tag) as (_, seconds, _):
            starts.append(round(seconds, 3))
    figures = {"requests": requests, "batches": batches, "equal_argmax": equal, "cold_start_seconds": starts}
    figures |= {"parts_ms": in_parts(bench), "overload": loads, "memory": memory, "adaptive_batching": batching}
    subject = {"bento": bench.tag, "candidate": bench.metadata["candidate"]}
    return {"ratios": ratios(figures), **subject, **figures}


def ratios(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios of medians over the turns; None if not measured."""
    at_reference = {name: by_clients[str(REFERENCE)] for name, by_clients in figures["requests"].items()}
    rates = {name: statistics.median(row["requests_per_second"]) for name, row in at_reference.items()}
    p99 = {name: statistics.median(row["p99_ms"]) for name, row in at_reference.items()}
    batches, equal = figures["batches"], figures["equal_argmax"]
    return {
        **{f"requests_to_{name}_{REFERENCE}_clients": ratio(rates["ours"], rates[name]) for name in BASELINES},
        f"batch{BATCH}_to_best_batch": ratio(batches["http"], batches["best"]) if batches else None,
        f"p99_to_noop_{REFERENCE}_clients": ratio(p99["ours"], p99["noop"]),
        "equal_argmax": equal["in_batches"] if equal else None,
        "cold_start_seconds": round(statistics.median(figures["cold_start_seconds"]), 2),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the medians behind the ratios."""
    for name, by_clients in figures["requests"].items():
        for clients, row in by_clients.items():
            rate, *spans = (
                statistics.median(row[key]) for key in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")
            )
            p50, p95, p99 = (f"{span:.2f}" for span in spans)
            print(f"{name:<10} {clients:>3} clients {rate:8.1f} requests/s, p50 {p50}, p95 {p95}, p99 {p99} ms")
    if batches := figures["batches"]:
        one, best = batches["one_image_ms"], batches["best"]
        print(f"in process: one image {one:.3f} ms, best batch {best:,.0f} images/s; over HTTP {batches['http']:,.0f}")


def ratio(one: float, other: float) -> float | None:
    """Return `one` / `other`, None if a service gave no answer."""
    return round(one / other, 3) if other and math.isfinite(one / other) else None


def keep(chosen: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the recipe's figures and their origin."""
    clients = " ".join(map(str, chosen.clients))
    command = (
        f"python benchmarks/bench_serve.py --recipe {chosen.recipe} --seconds {chosen.seconds:g} --clients {clients}"
    )
    command += f" --soak {chosen.soak}" if chosen.soak else ""
    keeping.keep(chosen.results, chosen.recipe, figures, command, PACKAGES)


def one_by_one(bench: Bench, port: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return requests per second and latencies, with one image per request.

    The form is {service: {clients: {figure: [value per turn]}}}.
    """
    with ExitStack() as running:
        ports = {"ours": port}
        for name in BASELINES:
            ports[name] = running.enter_context(baseline(name, bench.keras, bench.metadata["class_names"], scratch))
        return by_turns(bench, ports, form("image", [png(bench.pixels[0])]), "one image a request")


def with_and_without_batching(bench: Bench, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return the same figures for the artefact without and with adaptive batching."""
    with ExitStack() as running:
        ports = {
            name: running.enter_context(baseline(name, bench.artefact, bench.metadata["class_names"], scratch))
            for name in BATCHING
        }
        return by_turns(bench, ports, form("images", [png(bench.pixels[0])]), "adaptive batching")


def by_turns(bench: Bench, ports: Mapping[str, int], payload: bytes, task: str) -> dict[str, dict[str, Any]]:
    """Return the figures of services that get requests in turn."""
    figures: dict[str, dict[str, Any]] = {}
    requests = {name: request(ports[name], "/predict", FORM, payload) for name in ports}
    say("warming up")
    for name in ports:  # the first answers trace graphs and fill caches
        load(ports[name], requests[name], max(bench.clients), min(1.0, bench.seconds))
    turns = [(count, name) for _ in range(TURNS) for count in bench.clients for name in ports]
    for count, name in tqdm(turns, task):
        done = load(ports[name], requests[name], count, bench.seconds / TURNS)
        note(bench, f"{name} with {count} clients", done)
        add(figures.setdefault(name, {}).setdefault(str(count), {}), done.figures())
    return figures


def overload(bench: Bench, port: int, capacity: float) -> list[dict[str, float]]:
    """Return the figures at fixed rates of requests that do not wait for answers.

    The rates are multiples of `capacity`, the answers per second for 8 clients.
    """
    if not capacity:  # the measurement has added its failures
        return []
    asked = request(port, "/predict", FORM, form("image", [png(bench.pixels[0])]))
    rates = []
    for times in tqdm(OVERLOAD, "overload"):
        done = arrivals(port, asked, times * capacity, bench.seconds)
        offered = len(done.milliseconds) + done.failures.total()
        refused, unsent = (done.failures.pop(reason, 0) for reason in (REFUSED, NO_CONNECTION))
        note(bench, f"ours at {times:g} times its capacity", done)
        figures = done.figures()
        rates.append(
            {
                "times_capacity": times,
                "offered_per_second": round(offered / bench.seconds, 1),
                "accepted_per_second": round(figures["requests_per_second"], 1),
                "refused_share": round(refused / offered, 4),
                "unsent_share": round(unsent / offered, 4),
                "p50_ms": round(figures["p50_ms"], 2),
                "p99_ms": round(figures["p99_ms"], 2),
            }
        )
    return rates


def watch_memory(bench: Bench, port: int, process: psutil.Process, capacity: float) -> dict[str, Any] | None:
    """Return the memory of the service's processes, in MiB, during a long run.

    `mib` has the memory after the warm-up and after each tenth of the requests. `late_growth_mib` is the growth during
    the second half: it is large for a leak and small for a plateau. Requests arrive at half the capacity and at equal
    intervals.
    """
    if not capacity:  # the measurement has added its failures
        return None
    asked, rate = request(port, "/predict", FORM, form("image", [png(bench.pixels[0])])), capacity / 2
    say(f"warming up for {WARM_SECONDS} s")
    rounds, sizes = [arrivals(port, asked, rate, WARM_SECONDS)], [resident(process)]
    for _ in tqdm(range(TENTHS), "memory"):
        rounds.append(arrivals(port, asked, rate, bench.soak / TENTHS / rate))
        sizes.append(resident(process))
    refused = [done.failures.pop(REFUSED, 0) for done in rounds]  # the machine may stall during a long run
    for done in rounds:
        note(bench, "the long run", done)
    return {
        "requests": sum(len(done.milliseconds) for done in rounds[1:]),
        "refused": sum(refused[1:]),
        "per_second": round(rate, 1),
        "mib": sizes,
        "late_growth_mib": round(sizes[-1] - sizes[TENTHS // 2], 1),
    }


def resident(process: psutil.Process) -> float:
    """Return the resident memory of the process's descendants, in MiB."""
    return round(sum(child.memory_info().rss for child in process.children(recursive=True)) / 2**20, 1)


def in_batches(bench: Bench, port: int) -> dict[str, Any] | None:
    """Return the images per second of the service with 64 images per request.

    The artefact in this process is measured in turn with it: `one_image_ms` with one thread, `best` with the best batch
    size and number of threads. `http` is the service with 8 clients. Returns None if the live Bento has no such
    endpoint.
    """
    body = np.resize(bench.pixels, (BATCH, *bench.pixels.shape[1:])).tobytes()
    status, _ = post(port, "/predict_batch", RAW, body)
    if status != 200:
        bench.failures.append(
            f"{bench.tag} answers /predict_batch with {status}; it may be older than the endpoint: run the recipe"
        )
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
    """Return the milliseconds of each part of an answer, on one thread here."""
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
    """Return the images per second for batches of `pixels`."""
    artefact.predict(pixels)  # allocates memory
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds or not count:
        artefact.predict(pixels)
        count += len(pixels)
    return count / taken


def equal_answers(bench: Bench, port: int) -> dict[str, str]:
    """Return how many test images get the artefact's class over HTTP, as "equal/all"."""
    artefact, names = Artefact(bench.artefact), bench.metadata["class_names"]
    expected, batched = [], []
    for start in tqdm(range(0, len(bench.pixels), BATCH), "answers in batches"):
        part = bench.pixels[start : start + BATCH]
        expected += [names[best] for best in artefact.predict(part).argmax(-1)]
        batched += [
            answer.get("class") for answer in answer_to(port, "/predict_batch", RAW, part.tobytes())["predictions"]
        ]
    singles = [
        answer_to(port, "/predict", FORM, form("image", [png(image)]))["class"]
        for image in tqdm(bench.pixels[:SINGLES], "answers one by one")
    ]
    counts = {"in_batches": equal(expected, batched), "one_by_one": equal(expected[: len(singles)], singles)}
    for way, (same, total) in counts.items():
        if same != total:
            bench.failures.append(f"{total - same} of {total} answers {way} differ from the artefact's")
    return {way: f"{same}/{total}" for way, (same, total) in counts.items()}


def equal(expected: list[str], actual: list[str]) -> tuple[int, int]:
    """Return the numbers of equal and of expected classes."""
    return sum(one == other for one, other in zip(expected, actual, strict=False)), len(expected)


def add(lists: dict[str, list[float]], figures: dict[str, float]) -> None:
    """Append each figure to the list of its name."""
    for name, figure in figures.items():
        lists.setdefault(name, []).append(round(figure, 3))


def note(bench: Bench, subject: str, done: Round) -> None:
    """Add the failures of a load test to the benchmark's."""
    bench.failures.extend(f"{subject}: {count} × {reason}" for reason, count in done.failures.items())


def answer_to(port: int, path: str, kind: str, body: bytes) -> Any:
    """Return the JSON of the answer. Raises BenchError if the status is not 200."""
    status, content = post(port, path, kind, body)
    if status != 200:
        raise BenchError(f"{path} answers {status}: {content[:200].decode(errors='replace')}")
    return json.loads(content)


if __name__ == "__main__":
    sys.exit(main())
