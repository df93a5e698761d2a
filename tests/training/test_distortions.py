import numpy as np
import tensorflow as tf
from small_training import SMALL, coloured

from mobilenet_pipeline.training import distortions
from mobilenet_pipeline.training.batches import Images, training_batches

IMAGE = np.random.default_rng(3).integers(0, 256, (1, 12, 12, 3), np.uint8)
BEND, POOL, FADE, GRAIN, UP, FINE, SMOOTH, BLOTCHED = range(8)
MIDDLE = np.full((1, 12, 12, 3), 0.5, np.float32)
"""Noise that changes nothing."""


def distorted(operation: int | None, *choices: int, noise: np.ndarray = MIDDLE) -> np.ndarray:
    """Return the image after one operation at full strength, with these choices, and tints of zero."""
    draws = np.full((1, distortions.DRAWS), 0.5, np.float32)
    if operation is not None:
        draws[0, operation] = 1.0
    draws[0, list(choices)] = 0.0
    return distortions.distort(tf.constant(IMAGE), tf.constant(draws), tf.constant(noise)).numpy()


def means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the mean of every square in its place."""
    count = 12 // side
    blocks = pixels.reshape(1, count, side, count, side, 3).mean(axis=(2, 4))
    return blocks.repeat(side, axis=1).repeat(side, axis=2)


def test_an_image_without_an_operation_stays_as_it_is() -> None:
    assert np.array_equal(distorted(None), IMAGE)


def test_a_tone_curve_darkens_and_brightens_by_a_power() -> None:
    for choices, exponent in (((), np.e), ((UP,), 1 / np.e)):
        expected = 255 * (IMAGE / 255) ** exponent
        assert np.abs(distorted(BEND, *choices) - expected).max() <= 0.51


def test_pixelation_gives_every_square_its_mean() -> None:
    for choices, side in (((FINE,), 2), ((), 3)):
        assert np.abs(distorted(POOL, *choices) - means(IMAGE, side)).max() <= 0.51


def test_a_smooth_image_of_fewer_pixels_is_interpolated() -> None:
    smooth = distorted(POOL, FINE, SMOOTH).astype(float)
    # Between the centres of two squares, a quarter of the way is the weighted mean of theirs.
    squares = means(IMAGE, 2)[:, ::2, ::2]
    expected = 0.75 * squares[0, 0, 0] + 0.25 * squares[0, 0, 1]
    assert np.abs(smooth[0, 0, 1] - expected).max() <= 0.51


def test_fewer_colour_pixels_keep_every_pixel_s_grey() -> None:
    greys = IMAGE.mean(axis=-1, keepdims=True)
    expected = np.clip(greys + means(IMAGE - greys, 4), 0, 255)
    assert np.abs(distorted(FADE) - expected).max() <= 0.51


def test_speckle_is_stronger_on_bright_pixels() -> None:
    brightest = distorted(GRAIN, noise=np.ones_like(MIDDLE))
    assert np.abs(brightest - np.minimum(IMAGE * (1 + distortions.SPECKLE), 255)).max() <= 0.51


def test_a_blotch_is_a_square_of_one_deviation() -> None:
    noise = np.random.default_rng(0).random(MIDDLE.shape, np.float32)
    change = (2 * noise[:, ::4, ::4] - 1).repeat(4, axis=1).repeat(4, axis=2) * distortions.BLOTCH
    assert np.abs(distorted(GRAIN, BLOTCHED, noise=noise) - np.clip(IMAGE + change, 0, 255)).max() <= 0.51


def test_the_share_of_a_batch_is_distorted() -> None:
    images = Images(coloured(64).pixels, np.arange(64))
    candidate = SMALL.model_copy(update={"flip": "none", "shift": 0, "distorted": 0.25})
    pixels, labels = next(iter(training_batches(images, candidate, 64, 1)))
    changed = [not np.array_equal(image, images.pixels[label]) for image, label in zip(pixels, labels, strict=True)]
    # A sixteenth of the chosen images gets none of the four operations.
    assert 12 <= sum(changed) <= 16
    assert not any(changed[0::4] + changed[1::4] + changed[2::4])
