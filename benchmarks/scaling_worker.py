"""A worker of bench_cluster: takes orders from standard input, a JSON object a line, and answers with seconds.

Its argument is JSON: `candidate` of cifar10, `size` of the images in the network, `batch`, `core`, and `sync_norm`. The
orders are {"steps": N}, {"reduce": bytes, "count": N}, and {"exchange": N}, all-reduces like those of N steps without
compute.
"""

import json
import os
import sys
import time
from pathlib import Path

from mobilenet_pipeline.system import environment

environment.prepare()
chosen = json.loads(sys.argv[1])
os.sched_setaffinity(0, {chosen["core"]})

import numpy as np
import tensorflow as tf

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.models import initial, network
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.training.steps import Stepper, moments

IMAGES = 2048


def main() -> None:
    """Build the candidate, and obey."""
    distribution.use_cores(1)
    strategy = distribution.choose()
    changes = {"batch_size": chosen["batch"], "sync_norm": chosen["sync_norm"], "precision": "float32", "seed": 0}
    changes |= {"distorted": 0.0, "pixel_range": "signed"}
    candidate = load_recipe("cifar10", Path("params.yaml")).candidate(chosen["candidate"])
    candidate = candidate.model_copy(update=changes | {"weights": "none", "input_sizes": [chosen["size"]]})
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), np.arange(IMAGES, dtype=np.uint16) % 10)
    with strategy.scope():
        model = network.build_trained(candidate, 10)
        initial.draw(model, 0)
    stepper = Stepper(candidate, model, strategy, images)
    stepper.set_length(10_000)
    batches = stepper.batches(0, 10_000)
    several = strategy.num_replicas_in_sync > 1
    kept = [] if chosen["sync_norm"] or not several else [tf.identity(one.value) for one in moments(model)]
    gradients = [tf.zeros(one.shape) for one in model.trainable_variables]

    @tf.function
    def reduce(values: list[tf.Tensor]) -> list[tf.Tensor]:
        def of_replica() -> list[tf.Tensor]:
            own = [tf.identity(value) for value in values]  # tensors of the replica's device
            return tf.distribute.get_replica_context().all_reduce("SUM", own)

        return strategy.run(of_replica)

    def answer(order: dict[str, int]) -> None:
        if "steps" in order:
            for _ in range(order["steps"]):  # several workers take single steps, so that one that is alone does, too
                stepper.take(batches, 1, chosen["size"])
        elif "reduce" in order:
            values = [tf.zeros([order["reduce"] // 4])]
            for _ in range(order["count"]):
                reduce(values)
        else:
            for _ in range(order["exchange"]):
                reduce(gradients)
                if kept:
                    reduce(kept)

    facts = {"bytes": 4 * sum(int(np.prod(one.shape)) for one in [*gradients, *kept])}
    norms = sum("BatchNormalization" in type(layer).__name__ for layer in model.layers)
    print(json.dumps({**facts, "norms": norms}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        answer(json.loads(line))
        print(json.dumps(time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
