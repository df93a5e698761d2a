"""Compare single-image requests, sent by wrk over eight connections, with those to an earlier commit's service.

Both commits build a Bento of the versions that are live here, and get requests in turns; so does `noop`, which only
decodes the image. In the same turns, this process computes single images with the artefact on as many threads as the
service has. If the champion is an int8 twin, both commits serve its candidate in float32, and a third service the twin.
The results are written to docs/results/speed.json.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import speed
from bench_serve import FAULTS, Bench, artefact_of, prepare, rate
from load import FORM, form, png, post
from services import BenchError, baseline, free_port, running, say
from speed import Figure
from tqdm import tqdm

from mobilenet_pipeline import config
from mobilenet_pipeline.inference.artefact import Artefact
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import provenance

CONNECTIONS = 8
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
TURNS, SECONDS = 5, 6
"""Turns of every service, and the seconds of a turn; the median counts."""
STARTS = 3
BARS = {
    "digits": {
        "requests/s": "ratio ≥ 1.6",
        "requests/s to those of a no-op": "value ≥ 2.5",
        "p99 latency to p50": "value ≤ 4",
    },
    "cifar10": {
        "requests/s to images/s of the model alone": "value ≥ 0.8",
        "memory of the worker, MiB": "value ≤ 250",
        "seconds from start to first answer": "value ≤ 3",
    },
}
"""The goals of a recipe's figures."""
PACKAGE = """
import json, sys
from pathlib import Path
from mobilenet_pipeline import config
from mobilenet_pipeline.release import bento
folders = [Path(folder) for folder in sys.argv[3:]]
tag = bento.package(config.load_recipe(sys.argv[1]), folders[0], folders[1] if folders[1:] else None)
print(json.dumps(bento.serve_command(tag, port=int(sys.argv[2]), record=Path("record-" + sys.argv[2]))))
"""
"""Packages champion and challenger with the code of the current directory, and prints the command that serves them."""
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "{kind}"
wrk.body = io.open("{body}", "rb"):read("*all")
"""


def main() -> int:
    """Measure the recipes that have a live Bento, print the figures, write them, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["digits", "cifar10"], help="default: digits cifar10")
    chosen = parser.parse_args()
    environment.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        if not shutil.which("wrk"):
            raise BenchError("wrk is not installed; on Debian and Ubuntu, `apt-get install wrk` installs it")
        commit = str(provenance.git_commit(Path("."))[0])
        with speed.trees() as trees:
            for recipe in chosen.recipes:
                settings = argparse.Namespace(recipe=recipe, clients=[CONNECTIONS], seconds=SECONDS * TURNS, soak=0)
                figures = measure(prepare(settings), recipe, trees)
                for figure in figures:
                    print(f"{figure.name}: {figure.value:.4g}, earlier {figure.base:.4g} ({figure.bar or 'no goal'})")
                speed.keep(figures, "make bench-requests", commit)
    except FAULTS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(bench: Bench, recipe: str, trees: dict[str, Path]) -> list[Figure]:
    """Return the recipe's figures."""
    served = [folder for folder in bento.served_models(config.load_recipe(recipe)).values() if folder]
    folders = served
    if twin := is_twin(recipe, served):
        folders = served[::-1]
    commands = {name: serve_command(tree, recipe, folders) for name, tree in trees.items()}
    if twin:
        commands["twin"] = serve_command(trees["now"], recipe, served)
    threads = len(os.sched_getaffinity(0))
    copies = [Artefact(folders[0] / bento.MODEL, threads=1) for _ in range(threads)]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services = {name: stack.enter_context(running(name, *command)) for name, command in commands.items()}
        ports = {name: command[1] for name, command in commands.items()}
        ports["noop"] = stack.enter_context(baseline("noop", bench.keras, bench.metadata["class_names"], scratch))
        load = {name: Load(name, port, bench.pixels[0], scratch) for name, port in ports.items()}
        for service in load.values():
            service.turn(2)  # the first answers fill caches
        alone = []
        for _ in tqdm(range(TURNS), f"requests to {recipe}"):
            for service in load.values():
                service.add()
            with ThreadPoolExecutor(threads) as pool:
                alone.append(sum(pool.map(lambda copy: rate(copy, bench.pixels[:1], SECONDS), copies)))
        mebibytes = {name: largest(process) for name, (_, process) in services.items()}
    starts: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(STARTS):
        for name in trees:
            command = commands[name]
            with running(name, *command) as (seconds, _):
                starts[name].append(seconds + first_answer(command[1], bench.pixels[0]))

    computed, noop = statistics.median(alone), load["noop"].rate
    values: dict[str, Callable[[str], float]] = {
        "requests/s": lambda name: load[name].rate,
        "requests/s to those of a no-op": lambda name: load[name].rate / noop,
        "requests/s to images/s of the model alone": lambda name: load[name].rate / computed,
        "p50 latency, ms": lambda name: load[name].p50,
        "p99 latency to p50": lambda name: load[name].p99 / load[name].p50,
        "memory of the worker, MiB": mebibytes.__getitem__,
        "seconds from start to first answer": lambda name: statistics.median(starts[name]),
    }
    bars, name = BARS.get(recipe, {}), f"{recipe}, {CONNECTIONS} clients"
    figures = [
        Figure(f"{name}: {words}", value("now"), value("base"), bars.get(words, "")) for words, value in values.items()
    ]
    if twin:
        rates = load["twin"].rate, load["base"].rate
        figures.append(Figure(f"{name}: requests/s with the int8 twin", *rates, "ratio ≥ 1.5"))
    return figures


def is_twin(recipe: str, served: list[Path]) -> bool:
    """Return whether the champion, the first of the served versions, is the int8 twin of the challenger, the second.

    Raises BenchError for an int8 champion with another challenger, or with none.
    """
    champion, *rest = (artefact_of(config.load_recipe(recipe), folder) for folder in served)
    if champion.precision == "float32":
        return False
    if rest != [config.Artefact(champion.candidate, "float32")]:
        raise BenchError(
            f"the champion of {recipe} is in int8 and the challenger is not its candidate in float32; add float32 to "
            f"serving.precision, then `make run RECIPE={recipe}`"
        )
    return True


def serve_command(tree: Path, recipe: str, folders: list[Path]) -> tuple[list[str], int, dict[str, str]]:
    """Build the tree's Bento of the live versions, and return the command that serves it, its port and variables."""
    port, variables = free_port(), speed.environment(tree, {"BENTOML_HOME": str(tree / ".bentoml")})
    command = [sys.executable, "-P", "-c", PACKAGE, recipe, str(port), *map(str, folders)]
    say(f"building the Bento of {tree.name}")
    child = subprocess.run(command, cwd=tree, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1]), port, variables


class Load:
    """The figures of a service over the turns, one request of an image file after the other on every connection."""

    def __init__(self, name: str, port: int, pixels: np.ndarray, scratch: Path) -> None:
        body, self.script = scratch / "body", scratch / "post.lua"
        body.write_bytes(form("image", [png(pixels)]))
        self.script.write_text(SCRIPT.format(kind=FORM, body=body), encoding="utf-8")
        self.name, self.url, self.turns = name, f"http://127.0.0.1:{port}/predict", list[tuple[float, ...]]()

    def turn(self, seconds: int) -> tuple[float, ...]:
        """Return requests per second, and p50 and p99 in milliseconds. Raises BenchError for a refused request."""
        words = ["--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", "--latency"]
        command = ["wrk", *words, "--script", str(self.script), self.url]
        page = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        if "Non-2xx" in page or "Socket errors" in page:
            raise BenchError(f"{self.name} has refused requests:\n{page}")
        (rate,) = re.findall(r"Requests/sec: +([\d.]+)", page)
        spans = dict(re.findall(r"(\d\d)% +([\d.]+(?:us|ms|s))", page))
        if not {"50", "99"} <= spans.keys():
            raise BenchError(f"wrk has no percentiles for {self.name}:\n{page}")
        return float(rate), *(milliseconds(spans[share]) for share in ("50", "99"))

    def add(self) -> None:
        """Measure one more turn."""
        self.turns.append(self.turn(SECONDS))

    @property
    def rate(self) -> float:
        """Median requests per second."""
        return statistics.median(turn[0] for turn in self.turns)

    @property
    def p50(self) -> float:
        """Median of the turns' median latencies, in milliseconds."""
        return statistics.median(turn[1] for turn in self.turns)

    @property
    def p99(self) -> float:
        """Median of the turns' 99th percentiles of the latency, in milliseconds."""
        return statistics.median(turn[2] for turn in self.turns)


def milliseconds(span: str) -> float:
    """Return a latency as wrk writes it, like 3.50ms, in milliseconds."""
    number, unit = re.split(r"(?<=\d)(?=[a-z])", span)
    return float(number) * UNITS[unit]


def largest(process: psutil.Process) -> float:
    """Return the resident memory of the largest of the process's descendants, the worker, in MiB."""
    return max(child.memory_info().rss for child in process.children(recursive=True)) / 2**20


def first_answer(port: int, pixels: np.ndarray) -> float:
    """Return the seconds of a request. Raises BenchError if it is refused."""
    began = time.perf_counter()
    status, content = post(port, "/predict", FORM, form("image", [png(pixels)]))
    if status != 200:
        raise BenchError(f"the first request got {status}: {content[:200]!r}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
