"""Near duplicates: test images that show the same as a training image. Pure.

A perceptual hash proposes pairs, and a comparison of their pixels confirms them. On CIFAR-10 the limits find 296 test
images (3.0 %) with a near twin; people found 3.3 % (Barz & Denzler 2020, arXiv:1902.00423).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

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
WORDS, BITS = 4, 16
"""A hash is so many words of so many bits."""
MANY = 2**14
"""Different hashes of training images from which on a search by words is faster than a comparison with all of them."""
TOGETHER = 2**12
"""Test images that are searched for at a time."""


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
    queries, query = np.unique(hashes[test], return_inverse=True)
    train = _first_of_equals(hashes, train, most)
    search = _by_words if len(train) >= MANY else _by_comparison
    row, column = search(_in_quarters(queries), _in_quarters(hashes[train]), distance, most).T
    # Equal test images have equal pairs: `row` ascends, and each query has a slice of it.
    start, end = np.searchsorted(row, query, "left"), np.searchsorted(row, query, "right")
    count = end - start
    places = np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)
    return np.stack([np.repeat(test, count), train[column[places]]], axis=1)


def _first_of_equals(hashes: np.ndarray, rows: np.ndarray, most: int) -> np.ndarray:
    """Return ascending `rows` without those that come after `most` others with the same hash: no pair has them."""
    order = np.argsort(hashes[rows], kind="stable")
    ordered = hashes[rows][order]
    return np.sort(rows[order[np.arange(len(rows)) - np.searchsorted(ordered, ordered) < most]])


def _by_comparison(queries: np.ndarray, hashes: np.ndarray, distance: int, most: int) -> np.ndarray:
    """Return what `_nearest` does for all pairs of `queries` and `hashes` uint64 with at most this distance."""
    pairs = [np.empty((0, 2), np.int64)]
    for part in _blocks(len(queries), len(hashes)):
        bits = np.bitwise_count(queries[part, None] ^ hashes)
        row, column = np.nonzero(bits <= distance)
        near = np.stack([row + part.start, column, bits[row, column]], axis=1)
        pairs.append(_nearest(near, most)[:, :2])
    return np.concatenate(pairs)


def _in_quarters(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes with their bits in another order: a word has the bits of a quarter of the 8 × 8 frequencies.

    Of smooth images, most bits of the high frequencies are alike. In this order, fewer images have a word in common
    than in that of the rows.
    """
    half = FREQUENCIES // 2
    bits = np.unpackbits(hashes.view(np.uint8)).reshape(-1, 2, half, 2, half).swapaxes(2, 3)
    return np.packbits(bits.reshape(-1)).view(np.uint64)


def _by_words(queries: np.ndarray, hashes: np.ndarray, distance: int, most: int) -> np.ndarray:
    """Return what `_by_comparison` does, for many hashes, without a comparison of all pairs.

    If two hashes differ in at most 3 bits, they have one of their four words in common; if in at most 7 or 11 bits, one
    of their words differs in at most 1 or 2: otherwise each word would differ in more (the pigeonhole principle;
    Norouzi et al. 2014, multi-index hashing, section 3). Each round looks for words with one more different bit. A
    query whose nearest hashes are near enough takes no part in later rounds. For 12 bits, the last round needs the
    words at one place only (Qin et al. 2018, GPH, section 3): 1,108 words in all, which one hash in 60 has.
    """
    tables = [_Table(hashes, word) for word in range(WORDS)]
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, len(queries), TOGETHER):
        part = queries[start : start + TOGETHER]
        found, limits = np.empty((0, 3), np.int64), np.full(len(part), distance)
        for reach in range(distance // WORDS + 1):
            # What differs in fewer bits than `within` was found in earlier rounds.
            within = reach * WORDS
            open_ = np.flatnonzero(limits >= within)
            for table in tables[: distance - within + 1]:
                for matches in table.matches(part[open_], _masks(reach), limits[open_]):
                    matches[:, 0] = open_[matches[:, 0]]
                    found = _nearest(np.concatenate([found, matches]), most)
                    full = np.flatnonzero(np.bincount(found[:, 0], minlength=len(part)) == most)
                    limits[full] = found[np.searchsorted(found[:, 0], full, "right") - 1, 2]
        pairs.append(found[:, :2] + (start, 0))
    return np.concatenate(pairs)


def _nearest(pairs: np.ndarray, most: int) -> np.ndarray:
    """Return of `pairs` (row, column, bits) the `most` nearest columns of each row, ascending in row, bits, column.

    A pair counts once, however often it is given.
    """
    pairs = pairs[np.lexsort(pairs.T[[1, 2, 0]])]
    pairs = pairs[np.r_[True, (pairs[1:] != pairs[:-1]).any(axis=1)][: len(pairs)]]
    return pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < most]


def _masks(count: int) -> Iterator[int]:
    """Yield the words with so many bits."""
    return (sum(1 << bit for bit in bits) for bits in combinations(range(BITS), count))


class _Table:
    """Hashes by the value of one of their words, in lines of equal width, at least one for each value.

    Lines are there because `take` copies them 30 times as fast as indexing copies hashes one by one.
    """

    def __init__(self, hashes: np.ndarray, word: int) -> None:
        self.word = word
        values = self._of(hashes)
        order = np.argsort(values, kind="stable")
        counts = np.bincount(values, minlength=2**BITS)
        width = 1 << max(0, (len(hashes) - 1).bit_length() - BITS)
        self.lines = np.maximum(1, -(-counts // width))
        """The number of lines of each value."""
        self.first = np.cumsum(self.lines) - self.lines
        self.columns = np.full((int(self.lines.sum()), width), -1, np.int64)
        """The places of the hashes in each line; −1 where it has no more."""
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.columns.reshape(-1)[self.first[values[order]] * width + rank] = order
        self.hashes = hashes[self.columns]

    def _of(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(self.word * BITS) & np.uint64(2**BITS - 1)).astype(np.int64)

    def matches(self, queries: np.ndarray, masks: Iterable[int], limits: np.ndarray) -> Iterator[np.ndarray]:
        """Yield (query, column, bits) of the hashes whose word differs from a query's in the bits of one of the masks.

        All in all, a hash differs in at most as many bits as the query's limit. The rows come in parts of about
        `BLOCK`.
        """
        width = self.hashes.shape[1]
        words, wide, most = self._of(queries), *(np.repeat(each[:, None], width, 1) for each in (queries, limits))
        most, parts, count = most.astype(np.uint8), [np.empty((0, 3), np.int64)], 0
        for mask in masks:
            lines, first = self.lines.take(words ^ mask), self.first.take(words ^ mask)
            rows, line = np.arange(len(queries)), 0
            while len(rows):
                places = first.take(rows) + line
                bits = np.bitwise_count(self.hashes.take(places, axis=0) ^ wide.take(rows, axis=0))
                row, slot = np.divmod(np.flatnonzero(bits <= most.take(rows, axis=0)), width)
                if len(row):
                    column = self.columns[places[row], slot]
                    parts.append(np.stack([rows[row], column, bits[row, slot]], axis=1)[column >= 0])
                    count += len(row)
                line += 1
                rows = np.flatnonzero(lines > line)
            if count > BLOCK:
                yield np.concatenate(parts)
                parts, count = parts[:1], 0
        yield np.concatenate(parts)


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
