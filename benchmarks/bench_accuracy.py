"""Compare the CPU minutes of the trainings in docs/results/training.json with those of an earlier commit.

The earlier commit's row says how many epochs its training had. Its code plans the same training here, and so tells how
many minutes of its budget those epochs take on this machine. Rows that have not been trained again since are left out.
The results are written to docs/results/speed.json.
"""

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import page
import speed
from speed import Figure

from mobilenet_pipeline.system import machine

RESULTS = Path("docs/results/training.json")
LARGEST_RATIO = 0.6
"""The goal for the CPU minutes, beside the earlier commit's, at its accuracy."""
PLANS = 3
"""Plans of the earlier commit for each training; the median counts."""
PLAN = """
import sys
from mobilenet_pipeline import config
from mobilenet_pipeline.system import environment
environment.prepare()
import numpy as np
import tensorflow as tf
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.training.train import Callbacks, Interrupted, TrainingData, train
recipe = config.load_recipe(sys.argv[1])
candidate = recipe.candidate(sys.argv[2]).with_precision(bfloat16=distribution.bfloat16_helps())
rng = np.random.default_rng(0)
count, size = recipe.data.train_rows, recipe.data.image_size
pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
labels = rng.integers(0, 10, count)
held = round(count * recipe.split.validation_share)
data = TrainingData(Images(pixels[held:], labels[held:]), Images(pixels[:held], labels[:held]), 10)
said = []
try:
    train(candidate, data, tf.distribute.get_strategy(), Callbacks(say=said.append, should_stop=lambda: bool(said)))
except Interrupted:
    print(said[0].split()[0])
"""
"""Prints the epochs that the code in the current directory plans for a candidate."""


Row = Mapping[str, Any]


def main() -> None:
    """Measure, print the figures, and write them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with speed.told(), speed.trees() as trees:
        earlier = trees["base"]
        now, then = (json.loads((tree / RESULTS).read_text(encoding="utf-8")) for tree in (Path("."), earlier))
        for new, old in retrained(now, then, machine.describe_machine()["cpu"]):
            plans = [planned(earlier, old) for _ in range(PLANS)]
            figures = compared(new, old, statistics.median(plans))
            for figure in figures:
                print(f"{figure.name}: {figure.value:.4g}, earlier {figure.base:.4g} ({figure.bar})", flush=True)
            speed.keep(figures, "make bench-accuracy", new["commit"])


def retrained(rows: Sequence[Row], earlier: Sequence[Row], cpu: str) -> list[tuple[Row, Row]]:
    """Return the rows that were trained again, each with the earlier one of the same recipe and candidate.

    Candidates that had no row are left out.

    Raises ValueError if there are none, or if one of them was trained on another processor than `cpu`.
    """
    known = {(row["recipe"], row["candidate"]): row for row in earlier}
    pairs = [(row, old) for row in rows if (old := known.get((row["recipe"], row["candidate"]))) not in (None, row)]
    if not pairs:
        raise ValueError(f"{RESULTS} has the rows of {speed.BASE[:7]}; `make accuracy` trains a candidate again")
    for row, _ in pairs:
        if others := sorted({run["machine"]["cpu"] for run in row["runs"]} - {cpu}):
            raise ValueError(
                f"{RESULTS}: {row['recipe']} {row['candidate']} was trained on {', '.join(others)}, and this is {cpu}; "
                "compare on the machine that trained"
            )
    return pairs


def planned(tree: Path, row: Row) -> float:
    """Return the epochs that the tree's code plans for the row's candidate, in its budget and on this machine."""
    command = [sys.executable, "-P", "-c", PLAN, row["recipe"], row["candidate"]]
    variables = speed.environment(tree, {"TF_NUM_INTRAOP_THREADS": "1"})
    child = subprocess.run(command, cwd=tree, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return float(child.stdout.splitlines()[-1])


def compared(new: Row, old: Row, epochs: float) -> list[Figure]:
    """Return the figures of a candidate. `epochs` are those that take the old row's CPU minutes here.

    There are two goals: the earlier accuracy in fewer minutes, or the desired accuracy of `page.BARS` in the earlier
    ones. The bars are those of the second if the accuracy reaches it.
    """
    name, accuracy = f"{new['recipe']}, {new['candidate']}", old["test_accuracy"]
    minutes = old["cpu_minutes"] * statistics.mean(run["epochs"] for run in old["runs"]) / epochs
    bar = page.bar_of(old)
    goal, ratio = accuracy, LARGEST_RATIO
    if bar and new["test_accuracy"] >= bar[3]:
        goal, ratio = bar[3], 1
    return [
        Figure(f"{name}: CPU minutes", new["cpu_minutes"], minutes, f"ratio ≤ {ratio}"),
        Figure(f"{name}: test accuracy", new["test_accuracy"], accuracy, f"value ≥ {goal:.4g}"),
    ]


if __name__ == "__main__":
    main()
