"""A program: train a little on the strategy of the arguments and TF_CONFIG, and print the results as JSON.

It has pretrained weights and a low learning rate: random weights magnify rounding from step to step.
"""

import json
import os
import signal
import sys
from pathlib import Path

from mobilenet_pipeline.system import environment

environment.prepare()

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from mobilenet_pipeline import config
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.training.train import Callbacks, TrainingData, train

ROOT = Path(__file__).resolve().parents[2]


def mirrored(count: int) -> tf.distribute.Strategy:
    """Mirror over logical devices of the CPU: they share its cores, so they show correctness, not speed."""
    physical = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * count)
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])


def main() -> None:
    count = int(sys.argv[1])
    print("waiting", flush=True)
    strategy = mirrored(count) if count > 1 else distribution.choose()
    replicas = strategy.num_replicas_in_sync
    candidate = config.load_recipe("digits", ROOT / "params.yaml").candidate("pretrained")
    changes = {"batch_size": 32 // replicas, "learning_rate": 0.001 / replicas, "warmup": 0.1, "sync_norm": True}
    changes |= {"epochs": 2, "shift": 0, "muon_rate": 0.00025 / replicas} | json.loads(
        sys.argv[2] if len(sys.argv) > 2 else "{}"
    )
    digits = load_digits()
    enlarged = (digits.images[:330] * 255 / 16).repeat(4, 1).repeat(4, 2)  # 10 batches of 32 and 10 images
    pixels = np.repeat(enlarged[..., None], 3, -1).astype(np.uint8)
    images = Images(pixels, digits.target[:330].astype(np.uint8))
    checkpoint = Path(os.environ["CHECKPOINT"]) if "CHECKPOINT" in os.environ else None
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    callbacks = Callbacks(
        on_epoch=lambda row, epochs, left: print(f"epoch {row.epoch}", flush=True),
        say=lambda line: print(line, flush=True),
        should_stop=lambda: bool(stops),
    )
    trained = train(
        candidate.model_copy(update=changes), TrainingData(images, images, 10), strategy, callbacks, checkpoint
    )
    found = {
        "strategy": distribution.describe(strategy),
        "rate": max(row.learning_rate for row in trained.history),
        "train": [row.train_loss for row in trained.history],
        "weights": [float(np.abs(weight).sum()) for weight in trained.model.get_weights()],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
