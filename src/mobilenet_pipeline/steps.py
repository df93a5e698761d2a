"""Steps of a training in TensorFlow's graph: forward, backward, update; the same for every strategy."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from mobilenet_pipeline import mobilenet
from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.optimizer import decayed

Sums = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def gradients_of(model: keras.Model, optimizer: keras.Optimizer, candidate: Candidate, global_batch: int) -> Callable:
    """A function of (images uint8 (b, h, w, 3), labels int32 (b,), size) to (gradients, loss, images right).

    The loss is the share of the global batch's mean cross-entropy, with label smoothing, that these images have; the
    gradients are of the loss as the optimizer scales it.
    """
    classes = model.output_shape[-1]

    def compute(images: tf.Tensor, labels: tf.Tensor, size: int) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        wanted = tf.one_hot(labels, classes) * (1 - candidate.label_smoothing) + candidate.label_smoothing / classes
        with tf.GradientTape() as tape:
            logits = model(mobilenet.enlarge(images, candidate, size), training=True)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(wanted, logits)) / global_batch
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        return gradients, loss, tf.reduce_sum(right)

    return compute


def steps_in_graph(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.Optimizer,
    candidate: Candidate,
    global_batch: int,
) -> Callable[[tf.data.Iterator, tf.Tensor, int], Sums]:
    """A function of (stream of batches, count, input size) that takes up to `count` steps.

    It gives (steps done, sum of losses, images right), and ends at the first loss that is not finite.
    """
    variables = model.trainable_variables
    decay = [candidate.weight_decay * flag for flag in decayed(variables, candidate)]
    compute = gradients_of(model, optimizer, candidate, global_batch)
    apart = [] if candidate.sync_norm or strategy.num_replicas_in_sync == 1 else moments(model)

    def step(images: tf.Tensor, labels: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss, right = compute(images, labels, size)
        # Replicas' gradients are summed, so each adds its share of the decay.
        share = optimizer.scale_loss(1 / strategy.num_replicas_in_sync)
        gradients = [g + d * share * v if d else g for g, v, d in zip(gradients, variables, decay, strict=True)]
        if candidate.precision == "mixed_float16":
            gradients = agreed(gradients)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if apart:
            own = [tf.identity(moment.value) for moment in apart]  # a variable as it was read is on no device
            means = tf.distribute.get_replica_context().all_reduce("MEAN", own)
            for moment, mean in zip(apart, means, strict=True):
                moment.assign(mean)
        return loss, right

    @tf.function
    def run(stream: tf.data.Iterator, count: tf.Tensor, size: int) -> Sums:
        done, losses, right = 0, 0.0, 0.0
        while done < count and tf.math.is_finite(losses):
            images, labels = next(stream)
            loss, hits = strategy.run(step, args=(images, labels, size))
            losses += strategy.reduce("SUM", loss, axis=None)
            right += strategy.reduce("SUM", hits, axis=None)
            done += 1
        return done, losses, right

    return run


def moments(model: keras.Model) -> list[keras.Variable]:
    """The running moments of the batch norms that learn: each replica moves its own, by its share of the batch."""
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization) and each.trainable]
    return [moment for norm in norms for moment in (norm.moving_mean, norm.moving_variance)]


def agreed(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """A replica's gradients, or no numbers where any replica's overflowed: all must leave the step out, or none."""
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    context = tf.distribute.get_replica_context()
    overflows = context.all_reduce("SUM", tf.cast(~finite, tf.float32))
    return [tf.where(overflows > 0, math.nan, gradient) for gradient in gradients]


def answers(model: keras.Model, candidate: Candidate) -> Callable[[tf.Tensor, int], tf.Tensor]:
    """A function of (images uint8 (b, h, w, 3), size) to the logits (b, classes) that a trained model gives."""

    @tf.function
    def answer(images: tf.Tensor, size: int) -> tf.Tensor:
        return model(mobilenet.enlarge(images, candidate, size), training=False)

    return answer
