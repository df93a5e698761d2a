"""Compare the CPU time of training, per 1,000 images, of this project and of stock Keras.

Stock Keras is `keras.applications.MobileNet`, trained by `fit` with Keras's own augmentation, resizing and scaling
layers. Both train every layer on the same images, with the same strides, width, input size, batch, optimizer and
augmentation (flip, shift). They run in turn in one process, so that other load on the machine affects both.

With --compare, an earlier commit is measured, too, at both sizes and in both number formats, and at the smaller size
also with one thread per operation on both sides. Each measurement has a process of its own. The ratios are written to
docs/results/speed.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mobilenet_pipeline.system import environment

environment.prepare()

import keras
import numpy as np
import speed
import tensorflow as tf

from mobilenet_pipeline import config
from mobilenet_pipeline.models import network
from mobilenet_pipeline.system import processor
from mobilenet_pipeline.training import batches, distribution, steps
from mobilenet_pipeline.training.optimizer import optimizer_of
from mobilenet_pipeline.workspace import provenance

CLASSES = 10
GOALS = {"auto": 0.45, "float32": 0.6}
"""The largest ratio to Keras that is the goal, by precision."""
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1"}
SETTINGS = [
    *((size, precision, dict[str, str]()) for precision in GOALS for size in (96, 32)),
    *((32, precision, ONE_THREAD) for precision in GOALS),
]
"""Input size in pixels, precision, and variables of TensorFlow, which has a thread for each core without them."""


def main() -> None:
    """Print a line per turn, then the medians, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=96, help="side of the input in pixels (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=12, help="per turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--precision", default="auto", help="of our layers (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="with an earlier commit, and write the results")
    chosen = parser.parse_args()
    if chosen.compare:
        compare()
        return
    candidate = candidate_of(chosen.size, chosen.precision)
    images, labels = random_images(candidate, chosen.batches)
    count = len(images)
    sides = {"ours": ours(candidate, images, labels), "keras": stock(candidate, images, labels)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(chosen.turns + 1):
        for name, train in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            train()
            cpu, wall = (value * 1000 / count for value in (time.process_time() - cpu, time.perf_counter() - wall))
            if turn:  # the first turn traces and warms up
                seconds[name].append(cpu)
                print(f"turn {turn} {name:<6} {cpu:6.2f} CPU s, {wall:6.2f} s per 1,000 images", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    machine = processor.model()
    print(f"median of {chosen.turns}: ours {medians['ours']:.2f}, Keras {medians['keras']:.2f} CPU s ({machine})")
    print(json.dumps({"cpu_ratio_to_keras": round(medians["ours"] / medians["keras"], 3), **medians}))


def compare() -> None:
    """Measure the earlier commit and this one, and write the ratios to Keras."""
    figures = []
    with speed.told(), speed.trees() as trees:
        for size, precision, variables in SETTINGS:
            if precision == "auto" and not distribution.bfloat16_helps():
                continue  # it would be float32 again
            ratios = {}
            for name, tree in trees.items():
                words = ["--size", str(size), "--precision", precision]
                command = [sys.executable, "benchmarks/bench_train.py", *words]
                child = subprocess.run(
                    command,
                    cwd=tree,
                    env=speed.environment(tree, variables),
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                ratios[name] = json.loads(child.stdout.splitlines()[-1])["cpu_ratio_to_keras"]
            number = "bfloat16" if precision == "auto" else precision
            name = f"training step at {size} px in {number}, CPU seconds to those of stock Keras"
            name += ", one thread" if variables else ""
            figures.append(speed.Figure(name, ratios["now"], ratios["base"], f"value ≤ {GOALS[precision]}"))
            print(f"{name}: {ratios['now']}, earlier {ratios['base']}", flush=True)
    speed.keep(figures, "make bench-train", str(provenance.git_commit(Path("."))[0]))


def candidate_of(size: int, precision: str) -> config.Candidate:
    """Return the candidate whose training is timed, at one input size in pixels."""
    recipe = config.load_recipe("cifar10", Path("params.yaml"))
    changes = {"weights": "none", "strides": "stock", "input_sizes": [size], "flip": "random", "shift": 4}
    changes |= {"precision": precision, "cutout": 0, "frozen": 0, "pixel_range": "signed", "distorted": 0.0}
    candidate = config.Candidate.model_validate(recipe.candidate("pretrained").model_dump() | changes)
    return candidate.with_precision(bfloat16=distribution.bfloat16_helps())


def random_images(candidate: config.Candidate, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (n, 32, 32, 3), and labels for so many batches."""
    rng = np.random.default_rng(0)
    count = candidate.batch_size * batches
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, CLASSES, count)


def ours(candidate: config.Candidate, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return a function that trains one epoch as the pipeline does."""
    model = network.build_trained(candidate, CLASSES)
    optimizer = optimizer_of(candidate, 0.01)
    optimizer.build(model.trainable_variables)
    batch, size = candidate.batch_size, candidate.input_size
    run = steps.steps_in_graph(tf.distribute.get_strategy(), model, optimizer, candidate, batch)
    stream = iter(batches.training_batches(batches.Images(images, labels), candidate, batch, 1_000))
    return lambda: run(stream, tf.constant(len(labels) // batch), size)


def stock(candidate: config.Candidate, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return a function that trains one epoch as Keras does."""
    size, share = candidate.input_size, candidate.shift / images.shape[1]
    network = keras.applications.MobileNet(
        (size, size, 3), alpha=candidate.alpha, include_top=False, weights=None, pooling="avg"
    )
    layers = [
        keras.Input(images.shape[1:], dtype="uint8"),
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomTranslation(share, share, fill_mode="reflect"),
        keras.layers.Resizing(size, size),
        keras.layers.Rescaling(1 / 127.5, -1),
        network,
        keras.layers.Dense(CLASSES),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return lambda: model.fit(images, labels, batch_size=candidate.batch_size, verbose=0)


if __name__ == "__main__":
    main()
