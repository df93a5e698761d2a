"""Images to training batches, shuffled and augmented in the graph. Seed, epoch and step determine each batch.

Few images are held in memory. Many are read from the dataset's memory-mapped file, batch by batch; the batches are the
same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.training.distortions import DRAWS, distort

IN_MEMORY = 1 << 30
"""The most bytes of training images that are held in memory. More are read from the file for every batch."""


@dataclass(frozen=True)
class Images:
    """Some images of a dataset and their `labels` (n,).

    `pixels` is uint8 (m, h, w, 3), in memory or memory-mapped; image i is row `rows[i]` of it, or row i without `rows`.
    """

    pixels: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes(self) -> int:
        """The size of the images in memory."""
        return len(self) * int(np.prod(self.pixels.shape[1:]))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return a copy of the images with these numbers (k,), 0 … n-1."""
        return np.asarray(self.pixels).take(numbers if self.rows is None else self.rows[numbers], axis=0)

    def first(self, count: int, start: int = 0) -> np.ndarray:
        """Return a copy of `count` images from image `start` on, or as many as there are."""
        return self.take(np.arange(start, min(start + count, len(self))))

    @cached_property
    def read(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function in the graph from numbers of images (k,) to their pixels uint8 (k, h, w, 3)."""
        if self.bytes <= IN_MEMORY:
            # A constant of the graph that asks first would be of no use to the next, and batches are made on the CPU.
            with tf.init_scope(), tf.device("CPU:0"):
                pixels = tf.constant(self.first(len(self)))
            return lambda numbers: tf.gather(pixels, numbers)

        def read(numbers: tf.Tensor) -> tf.Tensor:
            found = tf.numpy_function(self.take, [numbers], tf.uint8, stateful=False)
            return tf.ensure_shape(found, [None, *self.pixels.shape[1:]])

        return read


@dataclass(frozen=True)
class Share:
    """The part of every global batch that an input pipeline yields.

    It is pieces `first` to `first + count - 1` of `pieces`. A piece is one replica's part of a step; the pieces of a
    step are yielded one after the other.
    """

    first: int = 0
    count: int = 1
    pieces: int = 1


def moved(images: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Mirror (n, h, w, 3) images left to right where `mirrored` (n,) is true, then move them by `offsets` (n, 2).

    Offsets are int32: by how many rows up, and by how many columns to the left. The reflected border fills the gap.
    """
    height, width, channels = images.shape[1:]
    rows = reflected(offsets[:, :1] + tf.range(height)[None], height)
    columns = reflected(offsets[:, 1:] + tf.range(width)[None], width)
    columns = tf.where(mirrored[:, None], width - 1 - columns, columns)
    pixels = tf.reshape(rows[:, :, None] * width + columns[:, None, :], [-1, height * width])
    flat = tf.reshape(images, [-1, height * width, channels])
    return tf.reshape(tf.gather(flat, pixels, axis=1, batch_dims=1), tf.shape(images))


def reflected(index: tf.Tensor, count: int) -> tf.Tensor:
    """Return `index` with what lies outside 0 … count - 1 reflected at the first and the last of `count` places."""
    return (count - 1) - tf.abs((count - 1) - tf.abs(index))


def cut_out(images: tf.Tensor, centres: tf.Tensor, side: int) -> tf.Tensor:
    """Apply cutout: make a square of `side` pixels grey in each image.

    Images are uint8 (n, h, w, 3). `centres` int32 (n, 2) are row and column of the square's centre; the border clips
    the square (DeVries and Taylor 2017, arXiv:1708.04552).
    """
    inside = [
        tf.abs(tf.range(size)[None] * 2 + 1 - centres[:, axis : axis + 1] * 2) <= side
        for axis, size in enumerate(images.shape[1:3])
    ]
    hidden = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return tf.where(hidden, tf.constant(127, images.dtype), images)


def augment(candidate: Candidate, global_batch: int) -> Callable[..., tf.Tensor]:
    """Return the candidate's augmentation as a function.

    Its arguments are images, their rows in the dataset, epoch, step, and the images' slice of the global batch. Random
    numbers are drawn for the whole global batch, so that they do not depend on the number of replicas.
    """

    # The same share of every part of the batch is distorted.
    marks = np.floor(np.arange(global_batch + 1) * candidate.distorted)
    places = tf.constant(np.flatnonzero(np.diff(marks)), tf.int32)

    def apply(images: tf.Tensor, rows: tf.Tensor, epoch: tf.Tensor, step: tf.Tensor, part: slice) -> tf.Tensor:
        def seed(purpose: int) -> tf.Tensor:
            return tf.stack([tf.constant(candidate.seed + (purpose << 20), tf.int32), tf.cast(step, tf.int32)])

        def draw(purpose: int, shape: list[int], below: int) -> tf.Tensor:
            return tf.random.stateless_uniform(shape, seed(purpose), maxval=below, dtype=tf.int32)[part]

        offsets, mirrored = tf.zeros([tf.size(rows), 2], tf.int32), tf.zeros([tf.size(rows)], tf.bool)
        if candidate.flip == "random":
            mirrored = draw(1, [global_batch], 2) == 1
        elif candidate.flip == "alternating":
            # An image is mirrored in every second epoch: its orientation differs from epoch to epoch.
            start = tf.random.stateless_uniform([global_batch], [candidate.seed, 0], maxval=2, dtype=tf.int32)
            start = tf.gather(start, rows % global_batch)
            mirrored = (start + rows // global_batch + tf.cast(epoch, tf.int32)) % 2 == 1
        if candidate.shift:
            offsets = draw(2, [global_batch, 2], 2 * candidate.shift + 1) - candidate.shift
        if candidate.shift or candidate.flip != "none":
            images = moved(images, offsets, mirrored)
        if candidate.distorted:
            first, last = tf.unstack(tf.searchsorted(places, [part.start, part.stop]))
            draws = tf.random.stateless_uniform([len(places), DRAWS], seed(4))[first:last]
            noise = tf.random.stateless_uniform([len(places), *images.shape[1:]], seed(5))[first:last]
            chosen = (places[first:last] - part.start)[:, None]
            distorted = distort(tf.gather_nd(images, chosen), draws, noise)
            images = tf.tensor_scatter_nd_update(images, chosen, distorted)
        if candidate.cutout:
            images = cut_out(images, draw(3, [global_batch, 2], images.shape[1] + 1), candidate.cutout)
        return images

    return apply


def training_batches(
    images: Images,
    candidate: Candidate,
    global_batch: int,
    epochs: int,
    share: Share = Share(),
    first_step: int = 0,
) -> tf.data.Dataset:
    """Return the pieces of all batches from step `first_step` on.

    A piece is (images uint8 (b, h, w, 3), labels int32 (b,)). Each epoch is a new permutation. Images that do not fill
    the last batch are left out of the epoch, because replicas need equal pieces. Raises ValueError if there are fewer
    images than one batch.
    """
    count = len(images)
    steps = count // global_batch
    if steps == 0:
        raise ValueError(f"{count} training images do not fill one global batch of {global_batch}; lower batch_size")
    classes = tf.constant(images.labels.astype(np.int32))
    size = global_batch // share.pieces
    transform = augment(candidate, global_batch)

    plain = tf.autograph.experimental.do_not_convert  # reading code that needs no change takes long

    @plain
    def fetch(step: tf.Tensor, piece: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        part = slice(piece * size, (piece + 1) * size)
        rows = rows[part]
        return transform(images.read(rows), rows, step // steps, step, part), tf.gather(classes, rows)

    @plain
    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        noise = tf.random.stateless_uniform([count], [candidate.seed, tf.cast(epoch, tf.int32)])
        rows = tf.reshape(tf.argsort(noise)[: steps * global_batch], [steps, global_batch])
        numbers = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((numbers, rows))

    @plain
    def pieces(step: tf.Tensor, rows: tf.Tensor) -> tf.data.Dataset:
        parts = tf.data.Dataset.range(share.first, share.first + share.count, output_type=tf.int32)
        return parts.map(plain(lambda piece: (step, piece, rows)))

    first_epoch, done = divmod(first_step, steps)
    stream = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_batches).skip(done)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune, and freeing an iterator may wait for the tuner
    return stream.flat_map(pieces).map(fetch, num_parallel_calls=2).prefetch(4).with_options(options)
