"""Training steps and validation in TensorFlow's graph, for every strategy."""

import math
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models import network
from mobilenet_pipeline.system.memory import at_once
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.training.batches import Images, training_batches
from mobilenet_pipeline.training.optimizer import decayed, optimizer_of
from mobilenet_pipeline.training.schedule import OneCycle

Sums = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


GLANCE = 2500
"""Validation images that are scored after an epoch. After the last epoch, all are scored.

Scoring all of them after every epoch would take 6 to 9 % of a training on CPUs.
"""

PIECE = 250
"""Most validation images that are scored at once, and so between two checks for a stop request."""


class Stepper:
    """Takes the steps of a candidate's training on `strategy`. A step changes only model and optimizer.

    `batch` is the global batch size, `per_epoch` the number of steps in an epoch.
    """

    def __init__(
        self, candidate: Candidate, model: keras.Model, strategy: tf.distribute.Strategy, images: Images
    ) -> None:
        self.candidate, self.model, self.strategy, self.images = candidate, model, strategy, images
        self.batch = candidate.batch_size * strategy.num_replicas_in_sync
        self.per_epoch = len(images) // self.batch
        with distribution.name_lost_peers(), strategy.scope():
            self.schedule = OneCycle()
            self.optimizer = optimizer_of(candidate, self.schedule)
            self.optimizer.build(model.trainable_variables)
        weights = balanced(images.labels, model.output_shape[-1]) if candidate.class_weights == "balanced" else None
        self._run = steps_in_graph(strategy, model, self.optimizer, candidate, self.batch, weights)

    def batches(self, first_step: int, epochs: int) -> Iterator:
        """Return the batches from step `first_step` to the end of epoch `epochs`."""
        return iter(
            distribution.pieces(
                self.strategy,
                lambda share: training_batches(self.images, self.candidate, self.batch, epochs, share, first_step),
            )
        )

    def take(self, batches: Iterator, count: int, size: int) -> tuple[int, float, float]:
        """Take up to `count` steps at input size `size`.

        Returns steps taken, sum of losses and number of correct answers. The steps end at the first loss that is not
        finite. Raises ConnectionError if another worker is gone.
        """
        with distribution.name_lost_peers():
            taken, losses, correct = self._run(batches, tf.constant(count), size)
        return int(taken), float(losses), float(correct)

    def rehearse(self, size: int, count: int) -> None:
        """Take `count` steps and undo them."""
        before = self.arrays()
        self.take(self.batches(0, count), count, size)
        self.restore(before)

    def set_length(self, steps: int) -> None:
        """Set the length of the learning-rate schedule to `steps`."""
        rate = self.candidate.learning_rate * self.strategy.num_replicas_in_sync
        self.schedule.set(rate, self.candidate.warmup, steps)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return weights and optimizer state by name."""
        named = {"weight": self.model.get_weights(), "optimizer": [np.asarray(v) for v in self.optimizer.variables]}
        return {f"{kind}_{index}": value for kind, values in named.items() for index, value in enumerate(values)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set weights and optimizer state to what `arrays` returned."""
        self.model.set_weights([arrays[f"weight_{index}"] for index in range(len(self.model.weights))])
        for index, variable in enumerate(self.optimizer.variables):
            variable.assign(arrays[f"optimizer_{index}"])


class Validator:
    """Scores the validation images with the current weights of `model`, in float32."""

    def __init__(self, candidate: Candidate, model: keras.Model, images: Images) -> None:
        self.model, self.images = model, images
        self.count, self.glance = len(images), min(GLANCE, len(images))
        classes = model.output_shape[-1]
        self._copy = network.build_trained(candidate.model_copy(update={"precision": "float32"}), classes)
        self._answers = answers(self._copy, candidate)
        self._images = tf.TensorSpec([None, *images.pixels.shape[1:]], tf.uint8)

    def logits(self, count: int, size: int, should_stop: Callable[[], bool] = lambda: False) -> np.ndarray | None:
        """Return the logits (count, classes) of the first `count` images.

        `size` is the input size in pixels. Returns None if a stop is requested.
        """
        self._copy.set_weights(self.model.get_weights())
        parts = []
        piece = at_once(PIECE, size, size)
        answer = self._answers.get_concrete_function(self._images, size)  # one graph for batches of every length
        for start in range(0, count, piece):
            if should_stop():
                return None
            batch = self.images.first(min(piece, count - start), start)
            parts.append(answer(tf.constant(batch)).numpy())
        return np.concatenate(parts)

    def scores(self, logits: np.ndarray) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy of the first images' logits."""
        labels = self.images.labels[: len(logits)]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels.astype(np.int32), logits)
        return float(tf.reduce_mean(losses)), float((logits.argmax(axis=1) == labels).mean())


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return weights of the classes, float32 (classes,), with which every class has the same part in the loss.

    A class with m of n images has the weight n / (classes · m): the mean weight of the images is 1. A class without
    images has the weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts, len(labels) / (classes * np.maximum(counts, 1)), 0).astype(np.float32)


def gradients_of(
    model: keras.Model,
    optimizer: keras.Optimizer,
    candidate: Candidate,
    global_batch: int,
    class_weights: np.ndarray | None = None,
) -> Callable:
    """Return a function that computes the gradients of a batch.

    It maps (images uint8 (b, h, w, 3), labels int32 (b,), size) to (gradients, loss, number of correct answers). The
    loss is the images' summed cross-entropy with label smoothing, each multiplied with the weight of its class, divided
    by `global_batch`. The gradients are those of the loss as the optimizer scales it.
    """
    classes = model.output_shape[-1]
    frozen, rest = network.architecture_of(candidate).split(model, candidate)

    def compute(images: tf.Tensor, labels: tf.Tensor, size: int) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        targets = tf.one_hot(labels, classes) * (1 - candidate.label_smoothing) + candidate.label_smoothing / classes
        features = frozen(network.resize(images, candidate, size))
        with tf.GradientTape() as tape:
            logits = rest(features, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            if class_weights is not None:
                losses *= tf.cast(tf.gather(class_weights, labels), losses.dtype)
            loss = tf.reduce_sum(losses) / global_batch
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
    class_weights: np.ndarray | None = None,
) -> Callable[[tf.data.Iterator, tf.Tensor, int], Sums]:
    """Return a function that takes up to `count` steps.

    It maps (batches, count, input size) to (steps done, sum of losses, number of correct answers), and ends at the
    first loss that is not finite.
    """
    variables = model.trainable_variables
    decay = [candidate.weight_decay * flag for flag in decayed(variables, candidate)]
    compute = gradients_of(model, optimizer, candidate, global_batch, class_weights)
    unsynchronised = [] if candidate.sync_norm or strategy.num_replicas_in_sync == 1 else moments(model)

    def step(images: tf.Tensor, labels: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss, right = compute(images, labels, size)
        # Replicas' gradients are summed, so each replica adds its share of the decay.
        share = optimizer.scale_loss(1 / strategy.num_replicas_in_sync)
        gradients = [g + d * share * v if d else g for g, v, d in zip(gradients, variables, decay, strict=True)]
        if candidate.precision == "mixed_float16":
            gradients = agreed(gradients)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if unsynchronised:
            # all_reduce needs tensors: the value of a mirrored variable has no device.
            own = [tf.identity(moment.value) for moment in unsynchronised]
            means = tf.distribute.get_replica_context().all_reduce("MEAN", own)
            for moment, mean in zip(unsynchronised, means, strict=True):
                moment.assign(mean)
        return loss, right

    @tf.function(autograph=False)  # it would take half a second to read code that needs no change
    def run(stream: tf.data.Iterator, count: tf.Tensor, size: int) -> Sums:
        def goes_on(done: tf.Tensor, losses: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
            return (done < count) & tf.math.is_finite(losses)

        def take(done: tf.Tensor, losses: tf.Tensor, right: tf.Tensor) -> Sums:
            of_replicas = strategy.run(step, args=(*next(stream), size))
            loss, hits = (strategy.reduce("SUM", value, axis=None) for value in of_replicas)
            return done + 1, losses + loss, right + hits

        return tf.while_loop(goes_on, take, (0, 0.0, 0.0))

    return run


def moments(model: keras.Model) -> list[keras.Variable]:
    """Return the moving moments of the trainable batch norms.

    Each replica updates its own copies from its part of the batch.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    return [moment for norm in norms for moment in (norm.moving_mean, norm.moving_variance)]


def agreed(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return the gradients; all NaN if any replica's gradients overflowed.

    Then every replica's optimizer skips the step, and the replicas stay equal.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    context = tf.distribute.get_replica_context()
    overflows = context.all_reduce("SUM", tf.cast(~finite, tf.float32))
    return [tf.where(overflows > 0, math.nan, gradient) for gradient in gradients]


def answers(model: keras.Model, candidate: Candidate) -> tf.types.experimental.PolymorphicFunction:
    """Return a function in the graph that computes a trained model's logits.

    It maps (images uint8 (b, h, w, 3), size) to (b, classes).
    """

    @tf.function(autograph=False)
    def answer(images: tf.Tensor, size: int) -> tf.Tensor:
        return model(network.resize(images, candidate, size), training=False)

    return answer
