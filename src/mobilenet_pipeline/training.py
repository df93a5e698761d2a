"""Recipe, images and strategy to a trained model."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import keras
import numpy as np
import tensorflow as tf

from mobilenet_pipeline import dataset, mobilenet
from mobilenet_pipeline.config import Candidate

CHUNK = 25
"""Steps that run in the graph between two looks from Python."""


class DivergedError(ValueError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve; losses are cross-entropies per image, accuracies shares, `seconds` wall time."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Images:
    """uint8 images (n, 32, 32, 3) and their labels (n,)."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Trained:
    """The model, with Keras's own layers only, its learning curve, and what its weights started from."""

    model: keras.Model
    history: list[Epoch]
    origin: str


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then a cosine to zero (after Smith 2018, arXiv:1803.09820)."""

    def __init__(self, peak: float, warmup_steps: int, steps: int) -> None:
        self.peak, self.warmup_steps, self.steps = peak, warmup_steps, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate of `step`, which counts from 0."""
        done = tf.cast(step, tf.float32) + 1.0
        rise = done / max(self.warmup_steps, 1)
        fall = 0.5 + 0.5 * tf.cos(math.pi * (done - self.warmup_steps) / max(self.steps - self.warmup_steps, 1))
        return self.peak * tf.where(done <= self.warmup_steps, rise, fall)

    def get_config(self) -> dict:
        """What `__init__` takes."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "steps": self.steps}


def train(
    candidate: Candidate,
    training: Images,
    validation: Images,
    classes: int,
    strategy: tf.distribute.Strategy,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train the candidate on `strategy`, telling `on_epoch` after each epoch.

    The global batch is `batch_size` × replicas, and the learning rate grows with the replicas (Goyal et al. 2017,
    arXiv:1706.02677). Raises DivergedError naming the step when the loss is not finite.
    """
    keras.utils.set_random_seed(candidate.seed)
    replicas = strategy.num_replicas_in_sync
    global_batch = candidate.batch_size * replicas
    steps = len(training.labels) // global_batch
    batches = dataset.training_batches(training.pixels, training.labels, candidate, global_batch)
    schedule = OneCycle(
        candidate.learning_rate * replicas,
        round(candidate.warmup * steps * candidate.epochs),
        steps * candidate.epochs,
    )
    with strategy.scope():
        model = mobilenet.build(candidate, classes, fused=True)
        origin = mobilenet.load_pretrained(model, candidate)
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
        optimizer.build(model.trainable_variables)
    run = _steps_in_graph(strategy, model, optimizer, candidate, global_batch)
    stream = iter(strategy.experimental_distribute_dataset(batches))
    evaluate = _evaluation(model)
    history = []
    for epoch in range(candidate.epochs):
        start = time.perf_counter()
        loss, accuracy = _run_epoch(run, stream, epoch * steps, steps, global_batch)
        validation_loss, validation_accuracy = evaluate(validation)
        if not math.isfinite(validation_loss):
            raise DivergedError(
                f"the validation loss is {validation_loss} after step {(epoch + 1) * steps}: training stopped. Lower "
                "learning_rate, or look for broken images"
            )
        rate = float(schedule((epoch + 1) * steps - 1))
        row = Epoch(epoch + 1, rate, loss, accuracy, validation_loss, validation_accuracy, time.perf_counter() - start)
        history.append(row)
        on_epoch(row)
    plain = mobilenet.build(candidate, classes)
    plain.set_weights(model.get_weights())
    return Trained(plain, history, origin)


def decayed(variables: Iterable[keras.Variable]) -> list[bool]:
    """Which variables weight decay applies to: kernels of stem, pointwise and dense layers, not depthwise or norms."""
    return [len(v.shape) in (2, 4) and "conv_dw" not in v.path for v in variables]


def _steps_in_graph(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.Optimizer,
    candidate: Candidate,
    global_batch: int,
) -> Callable:
    variables = model.trainable_variables
    decay = [candidate.weight_decay * flag for flag in decayed(variables)]
    logits_of = keras.Model(model.input, model.get_layer("logits").output)
    classes = model.output_shape[-1]

    def step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        wanted = tf.one_hot(labels, classes) * (1 - candidate.label_smoothing) + candidate.label_smoothing / classes
        with tf.GradientTape() as tape:
            logits = logits_of(images, training=True)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(wanted, logits)) / global_batch
        gradients = tape.gradient(loss, variables)
        # Replicas' gradients are summed, so each adds its share of the decay.
        share = 1 / strategy.num_replicas_in_sync
        gradients = [g + d * share * v if d else g for g, v, d in zip(gradients, variables, decay, strict=True)]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        return loss, tf.reduce_sum(right)

    @tf.function
    def run(stream: tf.data.Iterator, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Up to `count` steps: (steps done, sum of losses, images right); ends at the first loss that is not finite."""
        done, losses, right = 0, 0.0, 0.0
        while done < count and tf.math.is_finite(losses):
            loss, hits = strategy.run(step, args=next(stream))
            losses += strategy.reduce("SUM", loss, axis=None)
            right += strategy.reduce("SUM", hits, axis=None)
            done += 1
        return done, losses, right

    return run


def _run_epoch(run: Callable, stream: object, first: int, steps: int, global_batch: int) -> tuple[float, float]:
    total, right, done = 0.0, 0.0, 0
    while done < steps:
        count, losses, hits = run(stream, tf.constant(min(CHUNK, steps - done)))
        done += int(count)
        if not math.isfinite(float(losses)):
            raise DivergedError(
                f"the loss is {float(losses)} at step {first + done}: training stopped. Lower learning_rate, or look "
                "for broken images"
            )
        total += float(losses)
        right += float(hits)
    return total / steps, right / (steps * global_batch)


def _evaluation(model: keras.Model) -> Callable[[Images], tuple[float, float]]:
    @tf.function
    def measure(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = model(images, training=False)
        loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(labels, probabilities))
        return loss, tf.reduce_sum(tf.cast(tf.argmax(probabilities, -1, tf.int32) == labels, tf.float32))

    def evaluate(images: Images) -> tuple[float, float]:
        batches = tf.data.Dataset.from_tensor_slices((images.pixels, images.labels.astype(np.int32))).batch(250)
        sums = np.sum([[float(value) for value in measure(*batch)] for batch in batches], axis=0)
        loss, accuracy = sums / len(images.labels)
        return float(loss), float(accuracy)

    return evaluate


def to_rows(history: list[Epoch]) -> list[dict]:
    """The learning curve as dictionaries, a row an epoch."""
    return [asdict(epoch) for epoch in history]
