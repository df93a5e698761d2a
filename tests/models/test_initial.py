import random
from pathlib import Path

import numpy as np

from mobilenet_pipeline import config
from mobilenet_pipeline.models import initial, network

ROOT = Path(__file__).resolve().parents[2]
DIGITS = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")


def test_weights_are_those_of_keras_for_the_seed_whatever_else_draws_random_numbers(monkeypatch):
    with monkeypatch.context() as alone:
        # As `set_random_seed(7)` in a process with one thread: other tests' threads draw from Python's numbers, too.
        alone.setattr("keras.src.random.seed_generator.python_random", random.Random(7))
        theirs = network.build_trained(DIGITS, 10).get_weights()
    random.random()
    model = network.build_trained(DIGITS, 10)
    initial.draw(model, 7)
    assert all(np.array_equal(a, b) for a, b in zip(theirs, model.get_weights(), strict=True))


def test_another_seed_draws_other_weights():
    model = network.build_trained(DIGITS, 10)
    kernels = []
    for seed in (1, 2):
        initial.draw(model, seed)
        kernels.append([w for w in model.get_weights() if w.ndim > 1])
    assert not any(np.allclose(a, b) for a, b in zip(*kernels, strict=True))
