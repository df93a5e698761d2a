"""The learning-rate schedule."""

import keras
import tensorflow as tf


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then linear learning-rate decay to zero (after Smith 2018, arXiv:1803.09820).

    The rate is zero until `set` is called. A graph that contains the schedule uses the new values.
    """

    def __init__(self) -> None:
        self.peak, self.warmup_steps, self.steps = (tf.Variable(value, trainable=False) for value in (0.0, 1.0, 2.0))

    def set(self, peak: float, warmup: float, steps: int) -> None:
        """Set peak rate, warm-up and number of steps. `warmup` is a share of the steps."""
        self.peak.assign(peak)
        self.warmup_steps.assign(round(warmup * steps))
        self.steps.assign(steps)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the learning rate of `step`, which counts from 0."""
        done = tf.cast(step, tf.float32) + 1.0
        rise = done / tf.maximum(self.warmup_steps, 1.0)
        fall = (self.steps - done) / tf.maximum(self.steps - self.warmup_steps, 1.0)
        return self.peak * tf.where(done <= self.warmup_steps, rise, fall)

    def get_config(self) -> dict:
        """Return an empty configuration: Keras requires the method."""
        return {}
