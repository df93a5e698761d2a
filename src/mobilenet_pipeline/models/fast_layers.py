"""Keras layers with faster training kernels. Weights and results are Keras's; saved models have Keras's own layers."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with TensorFlow's fused kernel.

    Keras computes moments and normalisation as separate operations on this backend. The fused kernel takes 25 % of
    their time.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: None = None) -> tf.Tensor:
        """Normalise (n, h, w, c).

        In training, the layer uses the batch's moments and updates the moving ones.
        """
        if self.synchronized:  # the kernel cannot compute moments over all replicas
            return super().call(inputs, training=training, mask=mask)
        fused = partial(tf.compat.v1.nn.fused_batch_norm, inputs, self.gamma, self.beta, epsilon=self.epsilon)
        if not training or not self.trainable:
            return fused(mean=self.moving_mean, variance=self.moving_variance, is_training=False)[0]
        outputs, mean, variance = fused(is_training=True)
        # The kernel returns the unbiased variance; Keras stores the biased one.
        count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], variance.dtype)
        variance *= (count - 1) / count
        momentum = self.momentum
        self.moving_mean.assign(self.moving_mean * momentum + mean * (1 - momentum))
        self.moving_variance.assign(self.moving_variance * momentum + variance * (1 - momentum))
        return outputs


class PointwiseConv2D(keras.layers.Conv2D):
    """A 1×1 convolution without bias, whose kernel gradient is one matrix product.

    TensorFlow's own kernel for this gradient takes three times as long in bfloat16 on CPUs.
    """

    def __init__(self, filters: int, **options: object) -> None:
        super().__init__(filters, 1, use_bias=False, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map (n, h, w, c) to (n, h, w, filters)."""
        if not self.trainable:  # TensorFlow fuses a plain convolution with the normalisation after it
            return super().call(inputs)
        return _pointwise(inputs, tf.convert_to_tensor(self.kernel))


@tf.custom_gradient
def _pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x_gradient = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(x), 1, "VALID")
        inputs, outputs = (tf.reshape(t, (-1, t.shape[-1])) for t in (x, upstream))
        return x_gradient, tf.reshape(tf.matmul(inputs, outputs, transpose_a=True), kernel.shape)

    return tf.nn.conv2d(x, kernel, 1, "VALID"), gradients


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A 3×3 depthwise convolution without bias, padded as in `keras.applications.MobileNet`, with faster gradients.

    Stride 1 has one pixel of padding at every side, stride 2 at the bottom and at the right only.
    """

    def __init__(self, stride: int, **options: object) -> None:
        super().__init__(3, stride, padding="same", use_bias=False, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map (n, h, w, c) to (n, h, w, c), or with stride 2 to (n, h // 2, w // 2, c)."""
        return self.convolve(inputs, tf.convert_to_tensor(self.kernel))

    def convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return what `call` does, with another kernel."""
        if self.strides[0] == 1:
            return _depthwise(inputs, kernel, 1, "SAME")
        if None in inputs.shape[1:3]:  # only while Keras works out shapes
            padded = tf.pad(inputs, [[0, 0], [0, 1], [0, 1], [0, 0]])
            return tf.nn.depthwise_conv2d(padded, kernel, (1, 2, 2, 1), "VALID")
        odd = [side % 2 for side in inputs.shape[1:3]]
        if any(odd) and not all(odd):
            raise ValueError(f"{inputs.shape[1]}×{inputs.shape[2]} pixels: both sides must be even, or both odd")
        # At even sizes, TensorFlow's own padding is one pixel at the end. A pixel after an odd size is never read.
        return _depthwise(inputs, kernel, 2, "VALID" if all(odd) else "SAME")


def _depthwise(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    options = {"strides": (1, stride, stride, 1), "padding": padding}

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # With stride 2, CPUs take 15 to 100 times as long for this gradient in bfloat16 as in float32.
            number = tf.float32 if stride == 2 and _on_cpu() else x.dtype
            x_gradient = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(x), tf.cast(kernel, number), tf.cast(upstream, number), **options
            )
            inputs, outputs = x, upstream
            if padding == "SAME":
                # For an image smaller than the kernel, TensorFlow has slow code. Zeros do not change the gradient.
                inputs, outputs = _grown(x, 3 if stride == 1 else 4), _grown(upstream, 3 if stride == 1 else 2)
            kernel_gradient = tf.nn.depthwise_conv2d_backprop_filter(inputs, kernel.shape, outputs, **options)
            return tf.cast(x_gradient, x.dtype), kernel_gradient

        return tf.nn.depthwise_conv2d(x, kernel, **options), gradients

    return convolve(x, kernel)


def _grown(x: tf.Tensor, side: int) -> tf.Tensor:
    """Return (n, h, w, c) with zeros at the bottom and at the right, so that height and width are at least `side`."""
    more = [max(0, side - (length or side)) for length in x.shape[1:3]]
    return tf.pad(x, [[0, 0], [0, more[0]], [0, more[1]], [0, 0]]) if any(more) else x


class ReLU6(keras.layers.ReLU):
    """ReLU6. On CPUs, XLA compiles it in bfloat16, which takes a third of the time of TensorFlow's own kernels."""

    def __init__(self, **options: object) -> None:
        super().__init__(6.0, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map a tensor to one of the same shape, with values of 0 to 6."""
        return _relu6(inputs) if inputs.dtype == tf.bfloat16 and _on_cpu() else tf.nn.relu6(inputs)


@tf.custom_gradient
def _relu6(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    y = _compiled_relu6(x)
    return y, lambda upstream: _compiled_relu6_gradient(upstream, y)


@tf.function(jit_compile=True)
def _compiled_relu6(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu6(x)


@tf.function(jit_compile=True)
def _compiled_relu6_gradient(upstream: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.where((y > 0) & (y < 6), upstream, tf.zeros_like(upstream))


def _on_cpu() -> bool:
    return not tf.config.list_physical_devices("GPU")
