"""Random distortions of training images, for robustness against what cameras and image formats do.

They are other operations than the corruptions of `evaluation/corruptions`, so that accuracy on corrupted images
measures how the training generalises: tone curves instead of brightness and contrast, fewer pixels instead of blur,
fewer colour pixels and noise by squares instead of JPEG, speckle instead of Gaussian noise. Mixing cheap operations at
random follows Hendrycks et al. 2020 (AugMix, arXiv:1912.02781).
"""

import tensorflow as tf

GAMMA = 1.0
"""Largest natural logarithm of the exponent of a tone curve, up or down."""

TINT = 0.3
"""Largest change of a colour channel's exponent against the image's, as a natural logarithm."""

SIDES, COLOUR_SIDE = (2, 3), 4
"""Sides in pixels of the squares that get one value, and of those that get one colour."""

SPECKLE, BLOTCH = 0.3, 15.0
"""Largest deviation of a pixel, as a share of its value, and of a square of `COLOUR_SIDE` pixels, of 255."""

DRAWS = 11
"""Random numbers that the distortions of an image need."""


def distort(images: tf.Tensor, draws: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Return distorted images uint8 (n, h, w, 3).

    `draws` (n, DRAWS) and `noise` (n, h, w, 3) are random numbers, uniform on 0 to 1.
    """
    # Each operation leaves half of the images as they are.
    bend, pool, fade, grain = (tf.nn.relu(2 * draws[:, index] - 1)[:, None, None, None] for index in range(4))
    up, fine, smooth, blotched = (draws[:, index, None, None, None] < 0.5 for index in range(4, 8))
    tints = (2 * draws[:, None, None, 8:11] - 1) * TINT * tf.sign(bend)
    pixels = curved(images, tf.exp(bend * tf.where(up, -GAMMA, GAMMA) + tints)[:, 0, 0])
    squares = tf.where(fine, *(averaged(pixels, side) for side in SIDES))
    waves = tf.where(fine, *(averaged(pixels, side, "bilinear") for side in SIDES))
    pixels += pool * (tf.where(smooth, waves, squares) - pixels)
    colours = pixels - tf.reduce_mean(pixels, -1, keepdims=True)
    pixels += tf.sqrt(fade) * (averaged(colours, COLOUR_SIDE) - colours)
    blotches = BLOTCH * spread(noise[:, ::COLOUR_SIDE, ::COLOUR_SIDE] * 2 - 1, COLOUR_SIDE, "nearest", pixels)
    pixels += grain * tf.where(blotched, blotches, SPECKLE * pixels * (noise * 2 - 1))
    return tf.cast(tf.clip_by_value(pixels + 0.5, 0.0, 255.0), tf.uint8)


def curved(images: tf.Tensor, exponents: tf.Tensor) -> tf.Tensor:
    """Return 255·(x/255)^e, float32 (n, h, w, 3), for bytes x and exponents e (n, 3) of the channels."""
    levels = 255 * (tf.range(256, dtype=tf.float32) / 255) ** exponents[:, :, None]
    table = tf.reshape(levels, [-1])
    curves = 256 * tf.reshape(tf.range(tf.size(exponents)), [-1, 1, 1, 3])
    return tf.gather(table, tf.cast(images, tf.int32) + curves)


def averaged(pixels: tf.Tensor, side: int, method: str = "nearest") -> tf.Tensor:
    """Return float32 (n, h, w, 3) with the means of squares of `side` pixels, resized back by `method`."""
    return spread(tf.nn.avg_pool2d(pixels, side, side, "SAME"), side, method, pixels)


def spread(values: tf.Tensor, side: int, method: str, pixels: tf.Tensor) -> tf.Tensor:
    """Return `values` resized by the factor `side` with `method`, cut to the size of `pixels`."""
    size = [side * length for length in values.shape[1:3]]
    return tf.image.resize(values, size, method)[:, : pixels.shape[1], : pixels.shape[2]]
