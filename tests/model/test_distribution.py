"""Logical devices must be made before TensorFlow starts, so each test is a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
from mobilenet_pipeline import environment; environment.prepare()
import keras
import numpy as np
import tensorflow as tf
from mobilenet_pipeline import config, distribution, mobilenet, training

replicas = int(sys.argv[1])
candidate = config.load_recipe("digits", Path(sys.argv[2])).candidate("scratch").model_copy(
    update=dict(strides="stock", epochs=2, batch_size=32 // replicas, shift=0, learning_rate=0.02 / replicas,
                warmup=0.0))
rng = np.random.default_rng(0)
labels = np.arange(128) % 10
pixels = (rng.integers(0, 60, (128, 32, 32, 3)) + labels[:, None, None, None] * 18).astype(np.uint8)
images = training.Images(pixels, labels)
strategy = distribution.choose(replicas)
trained = training.train(candidate, images, images, 10, strategy)
# The same images in every replica's share, so that the moments of a share are those of the whole batch. Trained
# weights and a low rate, because fresh ones magnify rounding from step to step.
pretrained = config.load_recipe("digits", Path(sys.argv[2])).candidate("pretrained")
share = np.tile(pixels[:16], (2, 1, 1, 1)), np.tile(labels[:16].astype(np.int32), 2)
with strategy.scope():
    model = mobilenet.build(pretrained, 10, fused=True)
    mobilenet.load_pretrained(model, pretrained)
    optimizer = keras.optimizers.SGD(0.002, momentum=0.9, nesterov=True)
    optimizer.build(model.trainable_variables)
step = training._steps_in_graph(strategy, model, optimizer, pretrained, 32)
batches = tf.data.Dataset.from_tensors(share).unbatch().batch(32).repeat()
stream = iter(strategy.experimental_distribute_dataset(batches))
steps = [float(step(stream, tf.constant(1))[1]) for _ in range(10)]
print(json.dumps({"steps": steps, "strategy": type(strategy).__name__, "replicas": strategy.num_replicas_in_sync,
    "rate": trained.history[0].learning_rate, "losses": [row.train_loss for row in trained.history],
    "validation": trained.history[-1].validation_loss}))
"""


def run(replicas: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(replicas), str(ROOT / "params.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two() -> dict:
    return run(2)


@pytest.fixture(scope="module")
def one() -> dict:
    return run(1)


def test_two_logical_cpus_are_mirrored(two):
    assert (two["strategy"], two["replicas"]) == ("MirroredStrategy", 2)


def test_the_learning_rate_grows_with_the_replicas(one, two):
    assert two["rate"] == pytest.approx(one["rate"], rel=1e-5)  # each was given 0.02 ÷ its replicas


def test_two_replicas_learn(two):
    assert two["losses"][1] < two["losses"][0]


def test_two_replicas_with_the_same_images_each_take_the_steps_that_one_takes(one, two):
    assert one["steps"][9] < 0.9 * one["steps"][0]
    assert two["steps"] == pytest.approx(one["steps"], rel=1e-3)
