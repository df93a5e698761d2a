"""Compare the seconds of `.ci/run` in a fresh clone, its installation included, with those of an earlier commit.

Both commits run one after the other, for up to an hour in all. The output goes to .bench/ci-base.log and
.bench/ci-now.log, the results to docs/results/speed.json.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import speed
from speed import Figure

from mobilenet_pipeline.workspace import provenance

LOGS = Path(".bench")
LARGEST_RATIO = 0.7
"""The goal for the seconds, beside the earlier commit's."""
OWN = ("CIFAR10_ARCHIVE", "IMAGENET_WEIGHTS_DIR", "PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
"""Variables of this workspace and of the `make` that runs the benchmark, which neither run sees."""


def main() -> None:
    """Run both, print the figures, and write them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    LOGS.mkdir(exist_ok=True)
    with speed.told(), speed.trees() as trees:
        outcomes = {name: run(tree, LOGS / f"ci-{name}.log") for name, tree in trees.items()}
        commit = provenance.git_commit(trees["now"])[0]
    (seconds, tests), (seconds_before, tests_before) = outcomes["now"], outcomes["base"]
    figures = [
        Figure(".ci/run, seconds", seconds, seconds_before, f"ratio ≤ {LARGEST_RATIO}"),
        Figure(".ci/run, tests that passed", tests, tests_before),
    ]
    for figure in figures:
        print(f"{figure.name}: {figure.value:.0f}, earlier {figure.base:.0f} ({figure.bar or 'no goal'})")
    speed.keep(figures, "make bench-ci", str(commit))


def run(tree: Path, log: Path) -> tuple[float, int]:
    """Run the tree's `.ci/run`, and return its wall seconds and the number of tests that passed.

    The output goes to `log`. Raises ValueError if it fails or no test passed.
    """
    print(f"{tree.name}: {log} has the output", flush=True)
    variables = {name: value for name, value in os.environ.items() if name not in OWN}
    began = time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.run([".ci/run"], cwd=tree, env=variables, stdout=output, stderr=output, check=False)
    seconds, tests = time.perf_counter() - began, passed(log.read_text(encoding="utf-8", errors="replace"))
    if child.returncode or not tests:
        raise ValueError(f".ci/run of {tree.name} ended with {child.returncode}, and {tests} tests passed; read {log}")
    return seconds, tests


def passed(output: str) -> int:
    """Return how many tests passed, from the last lines of pytest's runs, which may follow other output."""
    return sum(int(count) for count in re.findall(r"(\d+) passed\b[^\n]* in \d+\.\d+s", output))


if __name__ == "__main__":
    main()
