"""Arrays to batches: shuffled, augmented in the graph, a function of (seed, epoch, step) alone."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mobilenet_pipeline.config import Candidate


def flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror about half of (n, h, w, 3) images left to right. `seed` is int32 (2,)."""
    mirrored = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(mirrored, tf.reverse(images, axis=[2]), images)


def shift(images: tf.Tensor, seed: tf.Tensor, pixels: int) -> tf.Tensor:
    """Move each of (n, h, w, 3) images by up to `pixels` along both axes; its own border, reflected, fills the gap."""
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]], mode="REFLECT")
    offsets = tf.random.stateless_uniform([count, 2], seed, maxval=2 * pixels + 1, dtype=tf.int32)
    rows = offsets[:, :1] + tf.range(height)[None]
    columns = offsets[:, 1:] + tf.range(width)[None]
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)
    # Gathering columns needs them on axis 1.
    moved = tf.gather(tf.transpose(moved, [0, 2, 1, 3]), columns, axis=1, batch_dims=1)
    return tf.transpose(moved, [0, 2, 1, 3])


def augment(candidate: Candidate) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The candidate's augmentation, a function of (images, seed)."""

    def apply(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if candidate.flip:
            images = flip(images, seed)
        if candidate.shift:
            images = shift(images, seed + tf.constant([0, 1 << 16]), candidate.shift)
        return images

    return apply


def training_batches(
    images: np.ndarray, labels: np.ndarray, candidate: Candidate, global_batch: int
) -> tf.data.Dataset:
    """Batches of (uint8 (b, h, w, 3), int32 (b,)) of all epochs, in one unbroken stream.

    Each epoch is a fresh permutation; what does not fill a last batch is left out of that epoch, because replicas need
    equal shares. Raises ValueError when there are fewer images than one batch.
    """
    count = len(labels)
    steps = count // global_batch
    if steps == 0:
        raise ValueError(f"{count} training images do not fill one global batch of {global_batch}; lower batch_size")
    pixels, classes = tf.constant(images), tf.constant(labels.astype(np.int32))
    transform = augment(candidate)

    def fetch(step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed = tf.stack([tf.constant(candidate.seed, tf.int32), tf.cast(step, tf.int32)])
        return transform(tf.gather(pixels, rows), seed), tf.gather(classes, rows)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        noise = tf.random.stateless_uniform([count], [candidate.seed, tf.cast(epoch, tf.int32)])
        rows = tf.reshape(tf.argsort(noise)[: steps * global_batch], [steps, global_batch])
        numbers = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((numbers, rows))

    epochs = tf.data.Dataset.range(candidate.epochs)
    return epochs.flat_map(epoch_batches).map(fetch, num_parallel_calls=2).prefetch(4)
