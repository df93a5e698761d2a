"""Recipe, images and strategy to a trained model."""

import hashlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mobilenet_pipeline import checkpoint, dataset, distribution, mobilenet, steps
from mobilenet_pipeline.config import Candidate

CHUNK = 10
"""Steps that run in the graph between two looks from Python."""

TRIAL_STEPS = 5
"""Of each input size, timed before a training whose length is given in CPU time."""


class DivergedError(ValueError):
    """The loss is no longer a number."""


class Interrupted(SystemExit):
    """The training was asked to end, and has saved its state."""


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
    """The model, with Keras's own layers only, its learning curve, what its weights started from, and its cost.

    `cpu_seconds` are user and system time, with those of earlier processes that this training was resumed from.
    """

    model: keras.Model
    history: list[Epoch]
    origin: str
    cpu_seconds: float


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
    on_epoch: Callable[[Epoch, int], None] = lambda row, epochs: None,
    say: Callable[[str], None] = lambda line: None,
    saved: Path | None = None,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train the candidate on `strategy`.

    `on_epoch` is told each epoch and of how many, `say` what people want to know meanwhile.

    The global batch is `batch_size` × replicas, and the learning rate grows with the replicas (Goyal et al. 2017,
    arXiv:1706.02677). With a file `saved`, the state is kept there after every epoch, and a training that was cut short
    goes on from it: `on_epoch` hears of the epochs before, too. Raises DivergedError naming the step when the loss is
    not finite, and Interrupted, with the state saved, soon after `asked_to_end` says so.
    """
    keras.utils.set_random_seed(candidate.seed)
    with strategy.scope():
        model = mobilenet.build_trained(candidate, classes)
        origin = mobilenet.load_pretrained(model, candidate)
    labels = hashlib.sha256(np.concatenate([training.labels, validation.labels]).tobytes()).hexdigest()
    identity = {"candidate": candidate.model_dump(), "replicas": strategy.num_replicas_in_sync, "labels": labels}
    if candidate.epochs is None and distribution.workers() > 1:
        raise ValueError(
            "cpu_minutes cannot be shared by several workers, who would count different epochs; set epochs"
        )
    state = checkpoint.load(saved, identity) if saved else None
    epochs = state.epochs if state else plan(candidate, model, training, validation, say)
    loop = _Loop(candidate, model, strategy, training, epochs, state)
    for row in loop.history:
        on_epoch(row, epochs)
    if loop.step:
        say(f"going on after step {loop.step} of {loop.per_epoch * epochs}")
    plain = mobilenet.build(candidate, classes)
    measure = steps.evaluation(plain)
    started = time.perf_counter()
    while loop.step < loop.per_epoch * epochs:
        loop.advance()
        if loop.at_epoch_end:
            plain.set_weights(loop.weights())
            loss, accuracy = _evaluate(measure, validation)
            if not math.isfinite(loss):
                raise DivergedError(_diverged("validation loss", loss, loop.step))
            on_epoch(loop.end_epoch(loss, accuracy, time.perf_counter() - started), epochs)
            started = time.perf_counter()
        leave = asked_to_end()
        if saved and (leave or loop.at_epoch_end) and distribution.is_chief(strategy):
            checkpoint.save(saved, identity, loop.state())
        if leave:
            raise Interrupted(128 + signal.SIGTERM)
    plain.set_weights(loop.weights())
    return Trained(plain, loop.history, origin, loop.cpu_seconds)


def plan(
    candidate: Candidate, model: keras.Model, training: Images, validation: Images, say: Callable[[str], None]
) -> int:
    """How many epochs to train, after timing a few steps; what is said is how long that will take.

    The model is left as it was. Raises ValueError where `cpu_minutes` do not suffice for one epoch.
    """
    before = model.get_weights()
    wall, cpu = _cost_of_an_epoch(candidate, model, training, validation)
    model.set_weights(before)
    epochs = candidate.epochs
    if epochs is None:
        left = (candidate.cpu_minutes or 0) * 60 - time.process_time()
        epochs = int(left / cpu)
        if epochs < 1:
            raise ValueError(
                f"one epoch takes {cpu / 60:.1f} CPU-minutes here, cpu_minutes leaves {left / 60:.1f}: raise it, or "
                "lower alpha or input_sizes"
            )
    say(f"{epochs} epochs will take about {epochs * wall / 60:.0f} minutes, {epochs * cpu / 60:.0f} of CPU time")
    return epochs


def _cost_of_an_epoch(
    candidate: Candidate, model: keras.Model, training: Images, validation: Images
) -> tuple[float, float]:
    """Wall and CPU seconds, the mean over the candidate's input sizes, from a few steps on one device."""
    compute = tf.function(steps.gradients_of(model, candidate, candidate.batch_size))
    images, labels = training.pixels[: candidate.batch_size], training.labels[: candidate.batch_size].astype(np.int32)
    costs = []
    for size in candidate.input_sizes:
        compute(images, labels, size)  # is traced
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(TRIAL_STEPS):
            compute(images, labels, size)
        costs.append((time.perf_counter() - wall, time.process_time() - cpu))
    # A forward pass is a third of a step.
    images_seen = len(training.labels) + len(validation.labels) / 3
    scale = images_seen / len(labels) / TRIAL_STEPS / len(costs)
    return scale * sum(wall for wall, _ in costs), scale * sum(cpu for _, cpu in costs)


class _Loop:
    """A training between two steps: what changes from step to step, and how."""

    def __init__(
        self,
        candidate: Candidate,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        training: Images,
        epochs: int,
        state: checkpoint.State | None,
    ) -> None:
        replicas = strategy.num_replicas_in_sync
        batch = candidate.batch_size * replicas
        self.candidate, self.model, self.epochs, self.batch = candidate, model, epochs, batch
        self.per_epoch = len(training.labels) // batch
        total = self.per_epoch * epochs
        self.schedule = OneCycle(candidate.learning_rate * replicas, round(candidate.warmup * total), total)
        with strategy.scope():
            self.optimizer = keras.optimizers.SGD(self.schedule, momentum=0.9, nesterov=True)
            self.optimizer.build(model.trainable_variables)
        self.step, self.totals = 0, (0.0, 0.0)
        self.history: list[Epoch] = []
        self.spent = 0.0
        self.average = model.get_weights() if candidate.average else None
        if state:
            self._restore(state)
        self.run = steps.steps_in_graph(strategy, model, self.optimizer, candidate, batch)
        self.stream = iter(
            distribution.pieces(
                strategy,
                lambda share: dataset.training_batches(
                    training.pixels, training.labels, candidate, batch, epochs, share, self.step
                ),
            )
        )

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.per_epoch == 0

    @property
    def cpu_seconds(self) -> float:
        return self.spent + time.process_time()

    def weights(self) -> list[np.ndarray]:
        """The weights that are evaluated and kept."""
        return self.average or self.model.get_weights()

    def advance(self) -> None:
        """Take a few steps. Raises DivergedError."""
        sizes = self.candidate.input_sizes
        size = sizes[self.step // self.per_epoch * len(sizes) // self.epochs]
        count = min(CHUNK, self.per_epoch - self.step % self.per_epoch)
        with distribution.peers_named():
            done, losses, hits = self.run(self.stream, tf.constant(count), size)
        self.step += int(done)
        if not math.isfinite(float(losses)):
            raise DivergedError(_diverged("loss", float(losses), self.step))
        self.totals = self.totals[0] + float(losses), self.totals[1] + float(hits)
        if self.average:
            keep = self.candidate.average ** int(done)
            pairs = zip(self.average, self.model.get_weights(), strict=True)
            self.average = [old * keep + new * (1 - keep) for old, new in pairs]

    def end_epoch(self, loss: float, accuracy: float, seconds: float) -> Epoch:
        """Put the epoch's row into the history."""
        rate = float(self.schedule(self.step - 1))
        losses, hits = self.totals[0] / self.per_epoch, self.totals[1] / (self.per_epoch * self.batch)
        row = Epoch(self.step // self.per_epoch, rate, losses, hits, loss, accuracy, seconds)
        self.history.append(row)
        self.totals = 0.0, 0.0
        return row

    def state(self) -> checkpoint.State:
        """Everything that `_restore` needs."""
        named = {"weight": self.model.get_weights(), "average": self.average or []}
        named["optimizer"] = [np.asarray(v) for v in self.optimizer.variables]
        arrays = {f"{kind}_{index}": value for kind, values in named.items() for index, value in enumerate(values)}
        return checkpoint.State(self.step, self.epochs, arrays, self.totals, to_rows(self.history), self.cpu_seconds)

    def _restore(self, state: checkpoint.State) -> None:
        def numbered(kind: str, count: int) -> list[np.ndarray]:
            return [state.arrays[f"{kind}_{index}"] for index in range(count)]

        self.model.set_weights(numbered("weight", len(self.model.weights)))
        for variable, value in zip(
            self.optimizer.variables, numbered("optimizer", len(self.optimizer.variables)), strict=True
        ):
            variable.assign(value)
        if self.average:
            self.average = numbered("average", len(self.average))
        self.step, self.totals, self.spent = state.step, state.totals, state.cpu_seconds
        self.history = [Epoch(**row) for row in state.history]


def _evaluate(measure: Callable, images: Images) -> tuple[float, float]:
    """Cross-entropy and share of right answers of a model on the images."""
    batches = tf.data.Dataset.from_tensor_slices((images.pixels, images.labels.astype(np.int32))).batch(250)
    sums = np.sum([[float(value) for value in measure(*batch)] for batch in batches], axis=0)
    loss, accuracy = sums / len(images.labels)
    return float(loss), float(accuracy)


def _diverged(what: str, value: float, step: int) -> str:
    return f"the {what} is {value} at step {step}: training stopped. Lower learning_rate, or look for broken images"


def to_rows(history: list[Epoch]) -> list[dict]:
    """The learning curve as dictionaries, a row an epoch."""
    return [asdict(epoch) for epoch in history]
