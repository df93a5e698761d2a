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
import numpy as np
from mobilenet_pipeline import config, distribution, training

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
print(json.dumps({"strategy": type(strategy).__name__, "replicas": strategy.num_replicas_in_sync,
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


def test_two_replicas_lose_about_what_one_does_at_the_same_global_batch(one, two):
    # Not equal: each replica normalises by the moments of its own half of the batch.
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=0.1)
