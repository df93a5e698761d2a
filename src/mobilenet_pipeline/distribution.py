"""Devices to a `tf.distribute.Strategy`, and a strategy's share of the work."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from mobilenet_pipeline import processor
from mobilenet_pipeline.dataset import Share


def choose() -> tf.distribute.Strategy:
    """The strategy for the devices that are there.

    With TF_CONFIG naming several workers, all of them train one model, each on all its GPUs. Else mirror over every
    GPU of this machine; without one, train on the CPU. Raises ValueError where TF_CONFIG is not JSON.
    """
    if workers() > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        return tf.distribute.MirroredStrategy([device.name for device in gpus])
    return tf.distribute.get_strategy()


def workers() -> int:
    """How many workers TF_CONFIG names; 1 without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 1
    try:
        return max(1, sum(len(job) for job in json.loads(text)["cluster"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG is {text!r}, which names no cluster ({error!r}); it looks like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None


def bfloat16_helps() -> bool:
    """Whether `auto` precision is bfloat16 here: on a CPU with instructions for it.

    Not with several workers, whose processors may differ: their copies of the weights would drift apart.
    """
    return workers() == 1 and not tf.config.list_physical_devices("GPU") and processor.computes_in_bfloat16()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the only one, or of several workers the first."""
    resolver = strategy.cluster_resolver
    if not resolver or not resolver.task_type:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def same_everywhere(strategy: tf.distribute.Strategy, facts: object) -> bool:
    """Whether all workers of TF_CONFIG, who must all ask, ask with the same facts, which are whatever JSON can hold."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    own = float(int.from_bytes(digest[:2], "big"))  # few enough bits for float32 to add them up exactly
    return workers() == 1 or summed(strategy)(own) == own * strategy.num_replicas_in_sync


def summed(strategy: tf.distribute.Strategy) -> Callable[[float], float]:
    """A function of a number to its sum over all replicas, which all workers must call, each with a number of its own.

    It raises ConnectionError where another worker has gone.
    """

    @tf.function
    def total(own: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(lambda each: each, args=(own,)), axis=None)

    def total_of(own: float) -> float:
        with peers_named():
            return float(total(tf.constant(own)))

    return total_of


def anywhere(strategy: tf.distribute.Strategy, wish: Callable[[], bool]) -> Callable[[], bool]:
    """A function that says whether any worker of TF_CONFIG wishes it; all must ask at the same points."""
    if workers() == 1:
        return wish
    wishes = summed(strategy)
    return lambda: wishes(float(wish())) > 0


@contextmanager
def peers_named() -> Iterator[None]:
    """Turn what TensorFlow raises when another worker has gone into a ConnectionError that says so."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.InternalError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
    ) as gone:
        if workers() == 1:
            raise
        reason = " ".join(gone.message.split())[:200]
        raise ConnectionError(
            f"another worker of TF_CONFIG has gone ({reason}); start again whichever does not by itself: "
            "with the workspace on a disk that all see, they go on where they were"
        ) from None


def pieces(strategy: tf.distribute.Strategy, make: Callable[[Share], tf.data.Dataset]) -> tf.data.Dataset:
    """What this process's replicas see of the pieces that `make` gives for a share of every global batch."""

    def local(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count = context.num_replicas_in_sync // context.num_input_pipelines
        return make(Share(context.input_pipeline_id * count, count, context.num_replicas_in_sync))

    return strategy.distribute_datasets_from_function(local)


def describe(strategy: tf.distribute.Strategy) -> str:
    """The strategy in words for a log."""
    if strategy is tf.distribute.get_strategy():
        return "the CPU"
    devices = [device.partition("device:")[2] for device in strategy.extended.worker_devices]
    elsewhere = f", worker {strategy.cluster_resolver.task_id} of {workers()}" if workers() > 1 else ""
    return f"{type(strategy).__name__} over {', '.join(devices)}{elsewhere}"
