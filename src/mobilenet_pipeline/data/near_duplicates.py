"""Near duplicates: test images that show the same as a training image. Pure.

A perceptual hash proposes pairs, and a comparison of their pixels confirms them. On CIFAR-10 the limits find 296 test
images (3.0 %) with a near twin; people found 3.3 % (Barz & Denzler 2020, arXiv:1902.00423).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DISTANCE = 12
"""The most bits in which the hashes of near twins differ, of 64."""
CORRELATION = 0.88
"""The smallest correlation between the pixels of near twins."""
PROPOSED = 5
"""So many training images are compared with a test image: flat images have thousands with a similar hash."""
SIDE, SHIFT = 32, 2
"""Pixels are compared at this size in pixels, and at every shift of so many pixels."""
LUMA = (0.299, 0.587, 0.114)
FREQUENCIES = 8
BLOCK = 2**18
"""The pixels, or the pairs of hashes, that are in memory at a time: they fit into the cache of a core."""


@dataclass(frozen=True, eq=False)
class Twins:
    """A row for each test image with a near twin: the most similar training image.

    `test` and `train` are row numbers (n,), ascending in `test`; `distance` (n,) are bits, and `correlation` (n,) is 1
    for equal pixels.
    """

    test: np.ndarray
    train: np.ndarray
    distance: np.ndarray
    correlation: np.ndarray


def find(images: np.ndarray, is_test: np.ndarray) -> Twins:
    """Return the near twins of `images` uint8 (n, h, w, 3), memory-mapped or not; `is_test` is bool (n,)."""
    codes = hashes(images)
    pairs = near_twins(codes, is_test, DISTANCE)
    alike = correlations(images, pairs)
    confirmed = np.flatnonzero(alike >= CORRELATION)
    best = confirmed[np.lexsort((-alike[confirmed], pairs[confirmed, 0]))]
    _, first = np.unique(pairs[best, 0], return_index=True)
    test, train = pairs[best[first]].T
    return Twins(test, train, np.bitwise_count(codes[test] ^ codes[train]).astype(np.int64), alike[best[first]])


def hashes(images: np.ndarray) -> np.ndarray:
    """Return a perceptual hash uint64 (n,) of each of `images` uint8 (n, h, w, 3).

    Similar images have hashes that differ in few bits. A bit says whether one of the lowest 8 × 8 frequencies of the
    brightness is above their median (Zauner 2010, section 3.2.1).
    """
    count, height, width, _ = images.shape
    rows, columns = _cosines(height), np.kron(_cosines(width), LUMA)
    codes = np.empty(count, np.uint64)
    for part in _blocks(count, height * width):
        lines = images[part].reshape(-1, width * len(LUMA)).astype(np.float64) @ columns.T
        amplitudes = np.einsum("fh,nhg->nfg", rows, lines.reshape(-1, height, FREQUENCIES), optimize=True)
        # Rounded, so that every machine gets the same bits.
        flat = np.round(amplitudes.reshape(-1, FREQUENCIES**2), 3)
        bits = flat > np.median(flat, axis=1, keepdims=True)
        codes[part] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return codes


def near_twins(hashes: np.ndarray, is_test: np.ndarray, distance: int = DISTANCE, most: int = PROPOSED) -> np.ndarray:
    """Return pairs int64 (m, 2) of a test row and a training row with similar hashes.

    `hashes` are uint64 (n,), `is_test` bool (n,). The hashes of a pair differ in at most `distance` bits. A test image
    has at most `most` pairs, those of its nearest training images, the nearest first. The test rows ascend.
    """
    test, train = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    theirs, pairs = hashes[train], [np.empty((0, 2), np.int64)]
    for part in _blocks(len(test), len(train)):
        bits = np.bitwise_count(hashes[test[part], None] ^ theirs)
        row, column = np.nonzero(bits <= distance)
        order = np.lexsort((column, bits[row, column], row))
        row, column = row[order], column[order]
        nearest = np.arange(len(row)) - np.searchsorted(row, row) < most
        pairs.append(np.stack([test[part][row[nearest]], train[column[nearest]]], axis=1))
    return np.concatenate(pairs)


def correlations(images: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the correlation of the pixels of each of `pairs` (m, 2), two rows of `images` uint8 (n, h, w, 3).

    Both are scaled to at most 32 pixels, and the best of the shifts by up to 2 pixels counts. An image of one colour
    correlates with none.
    """
    alike = np.zeros(len(pairs))
    for part in _blocks(len(pairs), images.shape[1] * images.shape[2]):
        ones, others = (_small(images[rows]) for rows in pairs[part].T)
        height, width = (side - 2 * SHIFT for side in ones.shape[1:3])
        middle = _normal(ones[:, SHIFT : SHIFT + height, SHIFT : SHIFT + width])
        for top, left in np.ndindex(2 * SHIFT + 1, 2 * SHIFT + 1):
            shifted = _normal(others[:, top : top + height, left : left + width])
            alike[part] = np.maximum(alike[part], (middle * shifted).sum(axis=1))
    return np.round(alike, 4)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `count` items of the given size."""
    step = max(1, BLOCK // max(size, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _cosines(side: int) -> np.ndarray:
    """Return what transforms `side` values to the amplitudes of their lowest cosines, (8, side)."""
    return np.cos(np.pi * np.outer(np.arange(FREQUENCIES), 2 * np.arange(side) + 1) / (2 * side)) / side


def _small(images: np.ndarray) -> np.ndarray:
    """Return images (n, h, w, 3) with sides of at most `SIDE` pixels, float32; a pixel is the mean of its area."""
    count, height, width, channels = images.shape
    rows = _areas(height) @ images.reshape(count, height, width * channels).astype(np.float32)
    return _areas(width) @ rows.reshape(count, -1, width, channels)


def _areas(side: int) -> np.ndarray:
    """Return the share of each of `side` pixels in each of the pixels after scaling, float32."""
    edges = np.linspace(0, side, min(side, SIDE) + 1)
    pixels = np.arange(side)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (shared.clip(0) / np.diff(edges)[:, None]).astype(np.float32)


def _normal(images: np.ndarray) -> np.ndarray:
    """Return each image as a vector of mean 0 and length 1; of length 0 for an image of one colour."""
    vectors = images.reshape(len(images), -1)
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 1, lengths, np.inf)
