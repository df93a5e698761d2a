"""Devices to a `tf.distribute.Strategy`."""

from contextlib import suppress

import tensorflow as tf


def choose(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Mirror over every GPU; without one, train on the CPU, split into `cpu_replicas` logical devices.

    Logical CPU devices share the cores: they prove that distributed training is right, not that it is fast. They can
    be made only before TensorFlow has started; a later call with another number raises ValueError.
    """
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        return tf.distribute.MirroredStrategy([device.name for device in gpus])
    if cpu_replicas == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(_logical_cpus(cpu_replicas))


def describe(strategy: tf.distribute.Strategy) -> str:
    """The strategy in words for a log."""
    if strategy is tf.distribute.get_strategy():
        return "the CPU"
    devices = [device.partition("device:")[2] for device in strategy.extended.worker_devices]
    return f"{type(strategy).__name__} over {', '.join(devices)}"


def _logical_cpus(count: int) -> list[str]:
    physical = tf.config.list_physical_devices("CPU")[0]
    with suppress(RuntimeError):  # TensorFlow has started: fine, if with enough devices
        tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * count)
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < count:
        raise ValueError(f"{count} CPU replicas asked for, but TensorFlow has started with {len(devices)} CPU devices")
    return [device.name for device in devices[:count]]
