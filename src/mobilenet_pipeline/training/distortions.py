"""Random distortions of training images, for robustness against what cameras and image formats do.

They are other operations than the corruptions of `evaluation/corruptions`, so that accuracy on corrupted images
measures how the training generalises: tone curves instead of brightness and contrast, pixelation instead of blur and
JPEG, speckle instead of Gaussian noise. Mixing cheap operations at random follows Hendrycks et al. 2020 (AugMix,
arXiv:1912.02781).
"""

import tensorflow as tf

GAMMA = 1.0
"""Largest natural logarithm of the exponent of a tone curve, up or down."""

TINT = 0.3
"""Largest change of a colour channel's exponent against the image's, as a natural logarithm."""

SPECKLE = 0.4
"""Largest deviation of a pixel from its value, as a share of the value."""


def distort(images: tf.Tensor, strengths: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Return distorted images uint8 (n, h, w, 3).

    `strengths` are random numbers (n, 8) and `noise` (n, h, w, 3), uniform on 0 to 1.
    """
    # Each operation leaves half of the images as they are.
    bend, pool, speckle = (tf.nn.relu(2 * strengths[:, index] - 1) for index in range(3))
    sign = tf.sign(strengths[:, 3] - 0.5)
    exponents = tf.exp((bend * sign * GAMMA)[:, None] + (2 * strengths[:, 4:7] - 1) * TINT * tf.sign(bend)[:, None])
    pixels = curved(images, exponents)
    coarse = tf.where(strengths[:, 7, None, None, None] < 0.5, pixelated(pixels, 2), pixelated(pixels, 4))
    pixels += pool[:, None, None, None] * (coarse - pixels)
    pixels *= 1 + (speckle * SPECKLE)[:, None, None, None] * (2 * noise - 1)
    return tf.cast(tf.clip_by_value(pixels + 0.5, 0.0, 255.0), tf.uint8)


def curved(images: tf.Tensor, exponents: tf.Tensor) -> tf.Tensor:
    """Return 255·(x/255)^e, float32 (n, h, w, 3), for bytes x and exponents e (n, 3) of the channels."""
    levels = 255 * (tf.range(256, dtype=tf.float32) / 255) ** exponents[:, :, None]
    table = tf.reshape(levels, [-1])
    curves = 256 * tf.reshape(tf.range(tf.size(exponents)), [-1, 1, 1, 3])
    return tf.gather(table, tf.cast(images, tf.int32) + curves)


def pixelated(pixels: tf.Tensor, side: int) -> tf.Tensor:
    """Return float32 (n, h, w, 3) with the mean of each square of `side` pixels in its place."""
    means = tf.nn.avg_pool2d(pixels, side, side, "SAME")
    return tf.repeat(tf.repeat(means, side, axis=1), side, axis=2)[:, : pixels.shape[1], : pixels.shape[2]]
