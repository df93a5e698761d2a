"""Optimizers: SGD with Nesterov momentum, and Muon for the pointwise kernels, which have most weights."""

import math
from collections.abc import Iterable

import keras
import tensorflow as tf

from mobilenet_pipeline.config import Candidate

MOMENTUM = 0.9

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that moves singular values towards 1 (Jordan et al. 2024, "Muon")."""

ITERATIONS = 3


def decayed(variables: Iterable[keras.Variable], candidate: Candidate) -> list[bool]:
    """Return for each variable whether weight decay applies to it.

    It applies to the kernels of stem, pointwise and dense layers. It does not apply to depthwise kernels, which have
    one output for each input, to batch normalisation, or to kernels whose norm Muon fixes.
    """
    return [
        (len(v.shape) == 2 or (len(v.shape) == 4 and v.shape[-1] > 1))
        and not (candidate.muon_rate is not None and _is_pointwise(v.path))
        for v in variables
    ]


def optimizer_of(
    candidate: Candidate, rate: float | keras.optimizers.schedules.LearningRateSchedule
) -> keras.Optimizer:
    """Return SGD with Nesterov momentum, or Muon if `muon_rate` is set.

    With float16, the loss is scaled so that gradients are not rounded to zero. A step whose gradients overflow is
    skipped and halves the scale (Micikevicius et al. 2017, arXiv:1710.03740, section 3.2).
    """
    if candidate.muon_rate is None:
        optimizer = Nesterov(rate)
    else:
        short = candidate.precision in ("pointwise_bfloat16", "mixed_bfloat16")
        ratio = candidate.muon_rate / candidate.learning_rate
        optimizer = Muon(rate, ratio, tf.bfloat16 if short else tf.float32)
    return keras.optimizers.LossScaleOptimizer(optimizer) if candidate.precision == "mixed_float16" else optimizer


class Nesterov(keras.optimizers.SGD):
    """SGD with Nesterov momentum, in TensorFlow's fused operation."""

    def __init__(self, rate: float | keras.optimizers.schedules.LearningRateSchedule) -> None:
        super().__init__(rate, momentum=MOMENTUM, nesterov=True)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(MOMENTUM, variable.dtype),
            use_nesterov=True,
        )


class Muon(Nesterov):
    """Muon for pointwise kernels, SGD with Nesterov momentum for all other variables.

    A pointwise kernel is a matrix (inputs, outputs). All singular values of its update are near 1, so that rare
    directions learn as fast as common ones (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
    networks"). Batch normalisation follows the kernel, so the kernel's norm does not change the output: the optimizer
    fixes it at the norm of an orthogonal matrix of the same shape.

    The learning rate of these kernels, relative to their norm, is `ratio` times the other variables' rate. The matrix
    products use `dtype`.
    """

    def __init__(
        self, rate: float | keras.optimizers.schedules.LearningRateSchedule, ratio: float, dtype: tf.DType
    ) -> None:
        super().__init__(rate)
        self.ratio, self.product_dtype = ratio, dtype

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        index = self._get_variable_index(variable)
        if not _is_pointwise(self._trainable_variables[index].path):
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self.momentums[index]
        self.assign(momentum, momentum * MOMENTUM + gradient)
        shape = variable.shape
        ahead = tf.reshape(gradient + momentum * MOMENTUM, shape[-2:])
        direction = tf.reshape(tf.cast(orthogonal(tf.cast(ahead, self.product_dtype)), tf.float32), shape)
        moved = variable - self.ratio * tf.cast(learning_rate, tf.float32) * direction
        self.assign(variable, moved * (math.sqrt(min(shape[-2:])) / tf.norm(moved)))


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Return a nearly orthogonal matrix with the singular vectors of `matrix`.

    Its singular values are near 1. The Newton-Schulz iteration is that of Jordan et al. 2024.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x /= tf.norm(x) + tf.cast(1e-7, x.dtype)
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        square = tf.matmul(x, x, transpose_b=True)
        x = first * x + tf.matmul(third * square + fifth * tf.matmul(square, square), x)
    return tf.transpose(x) if tall else x


def _is_pointwise(path: str) -> bool:
    return "conv_pw" in path and path.endswith("kernel")
