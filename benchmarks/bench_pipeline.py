"""Compare the seconds of a run, beside the trainings themselves, with those of an earlier commit.

Both commits run the recipe digits from nothing in clones, then again with nothing to do, without and beside a Prefect
server, in turns. The results are written to docs/results/speed.json.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import speed
from speed import Figure

from mobilenet_pipeline.system import environment, ports, process
from mobilenet_pipeline.workspace import provenance

TURNS = 3
"""Runs of each commit with nothing to do; the median counts."""


def main() -> None:
    """Run both commits, print the figures, and write them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    environment.prepare()
    commit = provenance.git_commit(Path("."))[0]
    with speed.told(), speed.trees() as trees:
        whole = {name: run(tree) for name, tree in trees.items()}
        overhead = {name: whole[name] - training_seconds(tree) for name, tree in trees.items()}
        alone = unchanged(trees)
        with prefect_server(trees["now"]) as address:
            beside = unchanged(trees, {"PREFECT_API_URL": address})
    figures = [
        Figure("demo, seconds", whole["now"], whole["base"]),
        Figure("demo, seconds without training", overhead["now"], overhead["base"], "ratio ≤ 0.5"),
        Figure("unchanged run, seconds", alone["now"], alone["base"], "value ≤ 5"),
        Figure("unchanged run beside a Prefect server, seconds", beside["now"], beside["base"], "value ≤ 3"),
    ]
    for figure in figures:
        print(f"{figure.name}: {figure.value:.1f}, earlier {figure.base:.1f} ({figure.bar or 'no goal'})")
    speed.keep(figures, "make bench-pipeline", str(commit))


def run(tree: Path, variables: dict[str, str] | None = None) -> float:
    """Run the recipe in `tree`, and return the wall seconds. Raises CalledProcessError if the run fails."""
    began = time.perf_counter()
    command = [sys.executable, "-P", "-m", "mobilenet_pipeline", "run", "--recipe", "digits"]
    child = subprocess.run(
        command, cwd=tree, env=speed.environment(tree, variables), stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode:
        print(child.stdout, file=sys.stderr)
        child.check_returncode()
    print(f"{tree.name}: {time.perf_counter() - began:.1f} s", flush=True)
    return time.perf_counter() - began


def unchanged(trees: dict[str, Path], variables: dict[str, str] | None = None) -> dict[str, float]:
    """Return the median seconds of a run that has nothing to do, by tree."""
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(TURNS):
        for name, tree in trees.items():
            seconds[name].append(run(tree, variables))
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_seconds(tree: Path) -> float:
    """Return the wall seconds in which at least one candidate was trained."""
    spans = []
    for path in tree.glob("models/digits/*/training.json"):
        training = json.loads(path.read_text(encoding="utf-8"))
        start = datetime.fromisoformat(training["trained_at"]).timestamp()
        spans.append((start, start + 60 * training["wall_minutes"]))
    total, last = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


@contextmanager
def prefect_server(tree: Path) -> Iterator[str]:
    """Run a Prefect server on a database of its own during the `with` body; yield its address."""
    port, home = ports.free_port(), tree / "server"
    home.mkdir()
    variables = speed.environment(tree, {"PREFECT_HOME": str(home)})
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log, process.leashed(command, variables, stdout=log) as child:
        ports.wait_for(f"http://127.0.0.1:{port}/api/health", child, home / "log")
        yield f"http://127.0.0.1:{port}/api"


if __name__ == "__main__":
    main()
