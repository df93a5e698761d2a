"""Devices and workers: their `tf.distribute.Strategy`, and how workers communicate."""

import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import tensorflow as tf

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.system import processor
from mobilenet_pipeline.training.batches import Share

LIMIT = "MOBILENET_PIPELINE_PEER_SECONDS"
"""The variable with the longest time that a worker waits for the others."""
LIMIT_SECONDS = 1800
_TRY_SECONDS = 1.0


def choose() -> tf.distribute.Strategy:
    """Return the strategy for the devices of this machine.

    If TF_CONFIG names several workers, they train one model, each on all its GPUs. Otherwise the model is mirrored over
    every GPU of this machine, or trained on the CPU. Raises ValueError if TF_CONFIG is not JSON, and the errors of
    `meet`.
    """
    if workers() > 1:
        meet()
        with _ended_when_told():
            return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        return tf.distribute.MirroredStrategy([device.name for device in gpus])
    return tf.distribute.get_strategy()


def workers() -> int:
    """Return the number of workers in TF_CONFIG; 1 without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 1
    try:
        return max(1, sum(len(job) for job in json.loads(text)["cluster"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG is {text!r}, which has no valid cluster ({error!r}); use the form "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None


def planned_replicas(candidate: Candidate, strategy: tf.distribute.Strategy) -> int:
    """Return the number of replicas that the candidate's global batch is for.

    It is larger than the strategy's if fewer workers train than the candidate has. Raises ValueError if they may not.
    """
    count = workers()
    planned = candidate.workers if candidate.workers > 1 else count
    if count > planned or (count < planned and not candidate.fewer_workers):
        raise ValueError(
            f"the candidate has {planned} workers, and {count} would train: run with --cluster or with a TF_CONFIG of "
            f"{planned}, set workers: {count}, or allow fewer_workers, which keep the global batch"
        )
    return strategy.num_replicas_in_sync * planned // count


def leave_gpus() -> None:
    """Leave this machine's GPUs to other processes. Raises RuntimeError if TensorFlow has used them."""
    tf.config.set_visible_devices([], "GPU")


def use_cores(count: int) -> None:
    """Let TensorFlow compute with `count` CPU cores. Raises RuntimeError if it has computed already."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def meet() -> None:
    """Wait until every worker of TF_CONFIG listens at its address.

    TensorFlow would wait for an hour, holding Python's interpreter lock: nothing could end the process but SIGKILL.
    Raises TimeoutError after LIMIT seconds, naming the workers that are missing, ValueError for an address or a limit
    that is none, and OSError if this worker's port cannot be used.
    """
    longest, (own, peers) = limit(), _own_and_peers()
    deadline = time.monotonic() + longest
    with _listening(own):
        while peers := [address for address in peers if not _listens(address)]:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{', '.join(peers)} of TF_CONFIG did not start within {longest} s ({LIMIT}); start every worker, "
                    "and check that this machine reaches its address"
                )
            time.sleep(_TRY_SECONDS / 5)


def _own_and_peers() -> tuple[str, list[str]]:
    """Return the addresses of this worker and of the others that train with it."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec()
    try:
        own = cluster.task_address(resolver.task_type, resolver.task_id)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG has no task that is in its cluster ({error}); give type and index") from None
    trains = [address for job in ("chief", "worker") if job in cluster.jobs for address in cluster.job_tasks(job)]
    return own, [address for address in trains if address != own]


def _listening(address: str) -> socket.socket:
    try:
        return socket.create_server(("", _host_and_port(address)[1]))
    except OSError as error:
        raise OSError(
            f"this worker of TF_CONFIG cannot listen at {address} ({error}); end what uses the port, or choose another"
        ) from None


def _listens(address: str) -> bool:
    with suppress(OSError), socket.create_connection(_host_and_port(address), _TRY_SECONDS):
        return True
    return False


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"TF_CONFIG: {address!r} is no address of a worker; use the form host:port")
    return host.strip("[]"), int(port)


def limit() -> int:
    """Return the seconds that a worker waits for the others. Raises ValueError for a setting that is no number."""
    text = os.environ.get(LIMIT) or str(LIMIT_SECONDS)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{LIMIT} is {text!r}; give a number of seconds from 1")
    return int(text)


@contextmanager
def _ended_when_told() -> Iterator[None]:
    """Let the kernel end this process after LIMIT seconds in the `with` body, and keep its handler of SIGTERM.

    TensorFlow installs a handler that ignores SIGTERM. Ray trains in a thread, which cannot change handlers, and ends
    its workers with SIGKILL.
    """
    handler = signal.getsignal(signal.SIGTERM)
    signal.alarm(limit())
    try:
        yield
    finally:
        signal.alarm(0)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def bfloat16_helps() -> bool:
    """Return whether `precision: auto` means bfloat16 here.

    It does on a CPU with bfloat16 instructions. Several workers use float32: their processors may differ, and their
    copies of the weights would drift apart.
    """
    return workers() == 1 and not tf.config.list_physical_devices("GPU") and processor.computes_in_bfloat16()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process, the only or first worker, writes the results."""
    resolver = strategy.cluster_resolver
    if not resolver or not resolver.task_type:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def all_agree(strategy: tf.distribute.Strategy, facts: object) -> bool:
    """Return whether every worker passed equal `facts`, any JSON value.

    A collective call: all workers must make it.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    own = float(int.from_bytes(digest[:2], "big"))  # 16 bits, so that float32 sums are exact
    return workers() == 1 or summed(strategy)(own) == own * strategy.num_replicas_in_sync


def summed(strategy: tf.distribute.Strategy) -> Callable[[float], float]:
    """Return a function that sums a number over all replicas.

    All workers must call the function, with their own numbers. The function raises ConnectionError if another worker is
    gone.
    """

    @tf.function
    def total(own: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(lambda value: value, args=(own,)), axis=None)

    def total_of(own: float) -> float:
        with name_lost_peers():
            return float(total(tf.constant(own)))

    return total_of


def any_worker(strategy: tf.distribute.Strategy, wish: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that says whether `wish` is true on any worker.

    All workers must call the function at the same points of the training.
    """
    if workers() == 1:
        return wish
    wishes = summed(strategy)
    return lambda: wishes(float(wish())) > 0


@contextmanager
def name_lost_peers() -> Iterator[None]:
    """Turn TensorFlow's errors for a lost worker into a ConnectionError that says so."""
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
            f"another worker of TF_CONFIG is gone ({reason}); restart every worker that does not restart by itself: "
            "with the workspace on a shared disk, the training continues from its checkpoint"
        ) from None


def pieces(strategy: tf.distribute.Strategy, make: Callable[[Share], tf.data.Dataset]) -> tf.data.Dataset:
    """Return this process's part of the data.

    `make` returns the pieces for a share of every global batch.
    """

    def local(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count = context.num_replicas_in_sync // context.num_input_pipelines
        return make(Share(context.input_pipeline_id * count, count, context.num_replicas_in_sync))

    return strategy.distribute_datasets_from_function(local)


def describe(strategy: tf.distribute.Strategy) -> str:
    """Return the strategy in words, for a log."""
    if strategy is tf.distribute.get_strategy():
        return "the CPU"
    devices = [device.partition("device:")[2] for device in strategy.extended.worker_devices]
    elsewhere = f", worker {strategy.cluster_resolver.task_id} of {workers()}" if workers() > 1 else ""
    return f"{type(strategy).__name__} over {', '.join(devices)}{elsewhere}"
