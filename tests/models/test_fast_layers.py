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
