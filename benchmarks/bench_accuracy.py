"""Compare the CPU minutes of the trainings in docs/results/training.json with those of an earlier commit.

The earlier commit's minutes are those that its epochs need on this machine: its code plans each training for its budget
here, and its row says how many epochs it had. Rows that have not been trained again since are left out. The results are
written to docs/results/speed.json.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import speed
from speed import Figure

from mobilenet_pipeline.system import machine

RESULTS = Path("docs/results/training.json")
LARGEST_RATIO = 0.6
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


def main() -> None:
    """Measure, print the figures, and write them."""
    now = by_candidate(json.loads(RESULTS.read_text(encoding="utf-8")))
    command = ["git", "show", f"{speed.BASE}:{RESULTS}"]
    base = by_candidate(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    cpu = machine.describe_machine()["cpu"]
    figures = []
    with speed.trees() as trees:
        for (recipe, candidate), row in base.items():
            if (new := now[recipe, candidate])["commit"] == row["commit"]:
                continue
            if others := {run["machine"]["cpu"] for run in new["runs"]} - {cpu}:
                sys.exit(f"{recipe} {candidate} was trained on {', '.join(others)}, and this is {cpu}")
            epochs = statistics.mean(run["epochs"] for run in row["runs"])
            minutes = row["cpu_minutes"] * epochs / planned(trees["base"], recipe, candidate)
            figures += compared(f"{recipe}, {candidate}", new, row, minutes)
    for figure in figures:
        print(f"{figure.name}: {figure.value:.4g}, earlier {figure.base:.4g} ({figure.bar})")
    commits = {figure.name: now[tuple(figure.name.partition(":")[0].split(", "))]["commit"] for figure in figures}
    for figure in figures:
        speed.keep([figure], "make bench-accuracy", commits[figure.name])


def by_candidate(rows: list[Mapping]) -> dict[tuple[str, ...], Mapping]:
    """Return the rows by recipe and candidate."""
    return {(row["recipe"], row["candidate"]): row for row in rows}


def planned(tree: Path, recipe: str, candidate: str) -> float:
    """Return the epochs that the tree's code plans for the candidate's budget on this machine."""
    command = [sys.executable, "-P", "-c", PLAN, recipe, candidate]
    variables = speed.environment(tree, {"TF_NUM_INTRAOP_THREADS": "1"})
    child = subprocess.run(command, cwd=tree, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return float(child.stdout.splitlines()[-1])


def compared(name: str, new: Mapping, old: Mapping, minutes: float) -> list[Figure]:
    """Return the figures of a candidate, whose earlier training takes `minutes` of CPU time here."""
    accuracy = old["test_accuracy"]
    return [
        Figure(f"{name}: CPU minutes", new["cpu_minutes"], minutes, f"ratio ≤ {LARGEST_RATIO}"),
        Figure(f"{name}: test accuracy", new["test_accuracy"], accuracy, f"value ≥ {accuracy:.4g}"),
    ]


if __name__ == "__main__":
    main()
