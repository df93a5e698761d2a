import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from mobilenet_pipeline.models import fast_layers

X = np.random.default_rng(2).normal(1, 3, (8, 4, 4, 6)).astype(np.float32)


@pytest.fixture
def norms() -> tuple[keras.Layer, keras.Layer]:
    return keras.layers.BatchNormalization(), fast_layers.FusedBatchNormalization()


@pytest.fixture
def convolutions() -> tuple[keras.Layer, keras.Layer]:
    theirs, ours = keras.layers.Conv2D(5, 1, use_bias=False), fast_layers.PointwiseConv2D(5)
    theirs(X), ours(X)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def test_the_fused_norm_gives_the_output_of_keras(norms):
    theirs, ours = norms
    for training in (True, False):
        assert np.allclose(theirs(X, training=training), ours(X, training=training), atol=1e-5)


def test_the_fused_norm_moves_the_moments_as_keras_does(norms):
    for layer in norms:
        layer(X, training=True)
    for theirs, ours in zip(*(layer.get_weights() for layer in norms), strict=True):
        assert np.allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize("trainable", [True, False])
def test_the_pointwise_convolution_gives_the_output_of_keras(convolutions, trainable):
    theirs, ours = convolutions
    ours.trainable = trainable
    assert np.allclose(theirs(X), ours(X), atol=1e-5)


def test_the_pointwise_convolution_has_the_gradients_of_keras(convolutions):
    def gradients(layer: keras.Layer) -> list[tf.Tensor]:
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 3)
        return tape.gradient(loss, [x, layer.kernel])

    for theirs, ours in zip(*map(gradients, convolutions), strict=True):
        assert np.allclose(theirs, ours, rtol=1e-4)


def keras_depthwise(stride: int) -> keras.Sequential:
    """Return the layers that `keras.applications.MobileNet` has in place of ours."""
    pad = [keras.layers.ZeroPadding2D(((0, 1), (0, 1)))] if stride == 2 else []
    padding = "valid" if stride == 2 else "same"
    return keras.Sequential([*pad, keras.layers.DepthwiseConv2D(3, stride, padding=padding, use_bias=False)])


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (3, 1), (8, 1), (2, 2), (3, 2), (4, 2), (7, 2), (8, 2)])
def test_the_depthwise_convolution_has_output_and_gradients_of_keras(side: int, stride: int) -> None:
    x = tf.constant(np.random.default_rng(side).normal(0, 1, (4, side, side, 6)), tf.float32)
    theirs, ours = keras_depthwise(stride), fast_layers.DepthwiseConv2D(stride)
    theirs(x), ours(x)
    ours.set_weights(theirs.get_weights())

    def results(layer: keras.Layer) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y**3)
        return [y, *tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])]

    for expected, actual in zip(results(theirs), results(ours), strict=True):
        assert np.allclose(expected, actual, rtol=1e-4, atol=1e-4)


def test_an_image_with_one_odd_side_is_refused_by_a_halving_convolution() -> None:
    with pytest.raises(ValueError, match="3×4 pixels: both sides must be even, or both odd"):
        fast_layers.DepthwiseConv2D(2)(tf.zeros((1, 3, 4, 2)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_in_bfloat16_is_near_that_in_float32(stride: int) -> None:
    x = tf.constant(np.random.default_rng(1).normal(0, 1, (8, 6, 6, 16)), tf.float32)
    wide, narrow = fast_layers.DepthwiseConv2D(stride), fast_layers.DepthwiseConv2D(stride, dtype="mixed_bfloat16")
    wide(x), narrow(x)
    narrow.set_weights(wide.get_weights())

    def kernel_gradient(layer: keras.Layer) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(x), tf.float32) ** 2)
        return tape.gradient(loss, layer.kernel.value)

    expected, actual = kernel_gradient(wide), kernel_gradient(narrow)
    assert np.linalg.norm(actual - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("number", [tf.float32, tf.bfloat16])
def test_relu6_has_output_and_gradient_of_tensorflow(number: tf.DType) -> None:
    x = tf.cast(tf.constant([-1.0, 0.0, 0.5, 5.9, 6.0, 7.0, math.nan]), number)

    def results(function: Callable) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return [tf.cast(y, tf.float32).numpy(), tf.cast(tape.gradient(y, x), tf.float32).numpy()[:-1]]

    for expected, actual in zip(results(tf.nn.relu6), results(fast_layers.ReLU6(dtype=number.name)), strict=True):
        assert np.array_equal(expected, actual, equal_nan=True)
