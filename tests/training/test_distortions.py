import numpy as np
import tensorflow as tf
from small_training import SMALL, coloured

from mobilenet_pipeline.training import distortions
from mobilenet_pipeline.training.batches import Images, training_batches

IMAGE = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3), np.uint8)
BEND, POOL, SPECKLE = range(3)
MIDDLE = np.full((1, 8, 8, 3), 0.5, np.float32)
"""Noise that changes nothing."""


def distorted(operation: int | None, noise: np.ndarray = MIDDLE, **chosen: float) -> np.ndarray:
    """Return the image after one operation at full strength, with tints of zero."""
    strengths = np.full((1, 8), 0.5, np.float32)
    if operation is not None:
        strengths[0, operation] = 1.0
    strengths[0, 3], strengths[0, 7] = chosen.get("sign", 1.0), chosen.get("side", 1.0)
    return distortions.distort(tf.constant(IMAGE), tf.constant(strengths), tf.constant(noise)).numpy()


def test_an_image_without_an_operation_stays_as_it_is() -> None:
    assert np.array_equal(distorted(None), IMAGE)


def test_a_tone_curve_darkens_and_brightens_by_a_power() -> None:
    for sign, exponent in ((1.0, np.e), (0.0, 1 / np.e)):
        expected = 255 * (IMAGE / 255) ** exponent
        assert np.abs(distorted(BEND, sign=sign) - expected).max() <= 0.51


def test_pixelation_gives_every_square_its_mean() -> None:
    for side, drawn in ((2, 0.0), (4, 1.0)):
        means = IMAGE.reshape(1, 8 // side, side, 8 // side, side, 3).mean(axis=(2, 4))
        expected = means.repeat(side, axis=1).repeat(side, axis=2)
        assert np.abs(distorted(POOL, side=drawn) - expected).max() <= 0.51


def test_speckle_is_stronger_on_bright_pixels() -> None:
    brightest = distorted(SPECKLE, np.ones_like(MIDDLE))
    assert np.abs(brightest - np.minimum(IMAGE * (1 + distortions.SPECKLE), 255)).max() <= 0.51


def test_the_share_of_a_batch_is_distorted() -> None:
    images = Images(coloured(64).pixels, np.arange(64))
    candidate = SMALL.model_copy(update={"flip": "none", "shift": 0, "distorted": 0.25})
    pixels, labels = next(iter(training_batches(images, candidate, 64, 1)))
    changed = [not np.array_equal(image, images.pixels[label]) for image, label in zip(pixels, labels, strict=True)]
    # An eighth of the chosen images gets none of the three operations.
    assert 10 <= sum(changed) <= 16
    assert not any(changed[0::4] + changed[1::4] + changed[2::4])
