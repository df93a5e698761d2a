"""A training that takes seconds: a tiny candidate, images whose class is their brightness, and a fixed plan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from mobilenet_pipeline import config
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.training.budget import Costs
from mobilenet_pipeline.training.plan import Plan
from mobilenet_pipeline.training.train import Callbacks, Trained, TrainingData, train

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    config.load_recipe("digits", ROOT / "params.yaml")
    .candidate("scratch")
    .model_copy(update={"strides": "stock", "epochs": 2, "batch_size": 16, "warmup": 0.25, "learning_rate": 0.05})
)
AUGMENTED = SMALL.model_copy(update={"flip": "random", "shift": 2, "cutout": 6, "distorted": 0.5})


def coloured(count: int) -> Images:
    """Return images whose class is their brightness: learnt in a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 100, (count, 32, 32, 3)) + labels[:, None, None, None] * 120
    return Images(pixels.astype(np.uint8), labels.astype(np.uint8))


def trained(candidate: config.Candidate = SMALL, checkpoint_path: Path | None = None, **callbacks: Callable) -> Trained:
    """Train on 64 images, which are four steps of `SMALL` an epoch; `callbacks` are fields of `Callbacks`."""
    data = TrainingData(coloured(64), coloured(32), classes=2)
    return train(candidate, data, tf.distribute.get_strategy(), Callbacks(**callbacks), checkpoint_path)


def fixed_plan(length: int, *costs: float) -> Callable[..., Plan]:
    """Return a stand-in for `make_plan` that times nothing; `costs` are CPU seconds of an epoch at each input size."""
    return lambda stepper, *_: Plan(
        length, stepper.per_epoch, tuple(stepper.candidate.input_sizes), Costs(list(costs), 0.0)
    )
