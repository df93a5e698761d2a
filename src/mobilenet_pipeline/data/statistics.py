"""Content hash and pixel statistics of images."""

import hashlib

import numpy as np

CHANNELS = ("r", "g", "b")
CHUNK_PIXELS = 2**18
"""Values per pass: as 64-bit numbers they fit into a processor's cache."""


def content_hashes(images: np.ndarray) -> list[str]:
    """Return the SHA-256, hex, of the pixels of each of the images uint8 (n, h, w, 3)."""
    return [hashlib.sha256(image).hexdigest() for image in images]


def statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return least and largest pixel value and the channels' means and standard deviations, an entry per image.

    `images` is uint8 (n, height, width, 3); means and standard deviations are on the scale 0 to 1. Sums are exact
    until the last step, so that every machine gives the same digits.
    """
    count, height, width, channels = images.shape
    area = height * width
    flat = images.reshape(count, -1)
    total, squares = np.empty((count, channels), np.int64), np.empty((count, channels), np.int64)
    step = max(1, CHUNK_PIXELS // (area * channels))
    ones = np.ones((1, area))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        # Sums of whole numbers below 2^53 are exact in any order; a product of matrices is the fastest sum.
        pixels = images[rows].reshape(-1, area, channels).astype(np.float64)
        total[rows] = (ones @ pixels)[:, 0]
        np.square(pixels, out=pixels)
        squares[rows] = (ones @ pixels)[:, 0]
    mean = total / (area * 255)
    std = np.sqrt(area * squares - total**2) / (area * 255)
    low, high = flat.min(axis=1).astype(np.int64), flat.max(axis=1).astype(np.int64)
    columns: dict[str, np.ndarray] = {"pixel_min": low, "pixel_max": high}
    columns |= {f"mean_{name}": mean[:, channel] for channel, name in enumerate(CHANNELS)}
    return columns | {f"std_{name}": std[:, channel] for channel, name in enumerate(CHANNELS)}
