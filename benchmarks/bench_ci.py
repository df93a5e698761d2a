"""Compare the seconds of `.ci/run` in a fresh clone, its installation included, with those of an earlier commit.

Both commits run one after the other, for up to an hour in all. The output goes to .bench/ci-COMMIT.log. The results are
written to docs/results/speed.json.
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


def main() -> int:
    """Run both, print the figures, write them, and return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    commit = provenance.git_commit(Path("."))[0]
    LOGS.mkdir(exist_ok=True)
    try:
        with speed.trees() as trees:
            outcomes = {name: run(tree, LOGS / f"ci-{name}.log") for name, tree in trees.items()}
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (seconds, tests), (seconds_before, tests_before) = outcomes["now"], outcomes["base"]
    figures = [
        Figure(".ci/run, seconds", seconds, seconds_before, f"ratio ≤ {LARGEST_RATIO}"),
        Figure(".ci/run, tests that passed", tests, tests_before),
    ]
    for figure in figures:
        print(f"{figure.name}: {figure.value:.0f}, earlier {figure.base:.0f} ({figure.bar or 'no goal'})")
    speed.keep(figures, "make bench-ci", str(commit))
    return 0


def run(tree: Path, log: Path) -> tuple[float, int]:
    """Run the tree's `.ci/run`, and return its wall seconds and the number of tests that passed.

    The output goes to `log`. Raises CalledProcessError if it fails, and ValueError if no test passed.
    """
    print(f"{tree.name}: {log} has the output", flush=True)
    variables = {name: value for name, value in os.environ.items() if name not in OWN}
    began = time.perf_counter()
    with log.open("wb") as output:
        subprocess.run([".ci/run"], cwd=tree, env=variables, stdout=output, stderr=subprocess.STDOUT, check=True)
    seconds = time.perf_counter() - began
    return seconds, passed(log.read_text(encoding="utf-8", errors="replace"))


def passed(output: str) -> int:
    """Return how many tests passed, from the last lines of pytest's runs. Raises ValueError if none did."""
    counts = re.findall(r"^=+ .*?(\d+) passed\b.* in .*=+$", output, re.MULTILINE)
    if not counts:
        raise ValueError("no line of the output says how many tests passed")
    return sum(map(int, counts))


if __name__ == "__main__":
    sys.exit(main())
