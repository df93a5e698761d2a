"""Recipe, images and strategy to a trained model."""

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mobilenet_pipeline import (
    anatomy,
    budget,
    checkpoint,
    dataset,
    distribution,
    fast_layers,
    metrics,
    mobilenet,
    optimizer,
    steps,
)
from mobilenet_pipeline.config import Candidate

CHUNK, CHUNK_SECONDS = 10, 2.0
"""The most steps, and the most CPU time for them, between two looks from Python.

Someone who asks the training to end waits that long, and does not wait for ever before killing it.
"""

TRIAL_STEPS, TRIAL_IMAGES = (2, 12), 500
"""Training steps and validation images of each input size that are timed before a training.

From two trials follows what steps cost, and what the beginning does that each trial and each epoch has.
"""

GLANCE = 2500
"""Validation images that are looked at after an epoch; after the last, it is all of them.

All, every time, would take 6 to 9 % of a training on CPUs.
"""

PIECE = 250
"""Validation images between two looks at whether somebody asks the training to end."""

RESERVE, RESERVE_SECONDS = 0.02, 2.0
"""The share of `cpu_minutes`, and the least, that is left for what takes longer after the length was last corrected."""


class DivergedError(ValueError):
    """The loss is no longer a number."""


class Interrupted(SystemExit):
    """The training was asked to end, and has saved its state; or not, where it had not taken a step yet."""

    def __init__(self, saved: bool) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.saved = saved


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

    `epochs` are the passes over the training images, the last of which may have been cut short; `cpu_seconds` are user
    and system time, with those of earlier processes that this training was resumed from, as far as they were saved.
    The logits are divided by `temperature`, with which they had the lowest loss on the validation images; the learning
    curve is of before.
    """

    model: keras.Model
    history: list[Epoch]
    origin: str
    epochs: float
    cpu_seconds: float
    temperature: float


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A straight line up to the peak, and one down to zero (after Smith 2018, arXiv:1803.09820).

    The rate is zero until `set` was called, which a graph that has the schedule in it sees.
    """

    def __init__(self) -> None:
        self.peak, self.warmup_steps, self.steps = (tf.Variable(value, trainable=False) for value in (0.0, 1.0, 2.0))

    def set(self, peak: float, warmup: float, steps: int) -> None:
        """`warmup` is a share of the steps."""
        self.peak.assign(peak)
        self.warmup_steps.assign(round(warmup * steps))
        self.steps.assign(steps)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate of `step`, which counts from 0."""
        done = tf.cast(step, tf.float32) + 1.0
        rise = done / tf.maximum(self.warmup_steps, 1.0)
        fall = (self.steps - done) / tf.maximum(self.steps - self.warmup_steps, 1.0)
        return self.peak * tf.where(done <= self.warmup_steps, rise, fall)

    def get_config(self) -> dict:
        """What there is to configure: nothing."""
        return {}


def train(
    candidate: Candidate,
    training: Images,
    validation: Images,
    classes: int,
    strategy: tf.distribute.Strategy,
    on_epoch: Callable[[Epoch, int, float], None] = lambda row, epochs, left: None,
    say: Callable[[str], None] = lambda line: None,
    saved: Path | None = None,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train the candidate on `strategy`.

    `on_epoch` is told each epoch, of how many, and how many seconds are left; `say` what people want to know meanwhile.

    The global batch is `batch_size` × replicas, and the learning rate grows with the replicas (Goyal et al. 2017,
    arXiv:1706.02677). With a file `saved`, the state is kept there after every epoch, and a training that was cut short
    goes on from it: `on_epoch` hears of the epochs before, too. Raises DivergedError naming the step when the loss is
    not finite, and Interrupted, with the state saved, soon after `asked_to_end` says so, unless all is done by then;
    of several workers, all of them once one was asked.
    """
    labels = hashlib.sha256(np.concatenate([training.labels, validation.labels]).tobytes()).hexdigest()
    identity = {"candidate": candidate.model_dump(), "replicas": strategy.num_replicas_in_sync, "labels": labels}
    identity |= {"code": _code(), "tensorflow": tf.__version__, "keras": keras.__version__}
    if candidate.epochs is None and distribution.workers() > 1:
        raise ValueError(
            "cpu_minutes cannot be shared by several workers, who would count different epochs; set epochs"
        )
    state = checkpoint.load(saved, identity) if saved else None
    # Before anything is built: workers that differ would wait for each other's weights, or take them.
    if not distribution.same_everywhere(strategy, [identity, state.digest if state else ""]):
        raise ValueError(
            "the workers of TF_CONFIG differ in candidate, code, knobs, labels or the checkpoint they go on from: "
            "train the same candidate on all, in the same workspace, on a disk that all see"
        )
    if saved and state is None and distribution.is_chief(strategy):
        checkpoint.set_aside(saved)
    # One that left alone would take from the others what they have not saved.
    asked_to_end = distribution.anywhere(strategy, asked_to_end)
    keras.utils.set_random_seed(candidate.seed)
    with distribution.peers_named(), strategy.scope():
        model = mobilenet.build_trained(candidate, classes)
    origin = mobilenet.load_pretrained(model, candidate)
    measured = mobilenet.build_trained(candidate.model_copy(update={"precision": "float32"}), classes)
    answer = partial(_logits, steps.answers(measured, candidate))
    loop = _Loop(candidate, model, strategy, training)
    length, costs = (state.length, state.costs) if state else plan(loop, answer, validation, say, asked_to_end)
    loop.begin(length, costs, state)
    for row in loop.history:
        on_epoch(row, loop.epochs, loop.left_after(row))
    if loop.step:
        say(f"going on after step {loop.step} of {length}")
    logits = None
    while loop.step < loop.length or loop.lacks_validation:
        if not loop.lacks_validation:  # a process that was asked to end may have left that to this one
            loop.advance()
        leave = asked_to_end()
        if loop.lacks_validation and not leave:
            measured.set_weights(model.get_weights())
            shown = validation if loop.step == loop.length else _first(validation, GLANCE)
            logits = answer(shown, loop.size_before, asked_to_end)
            leave = logits is None
            if logits is not None:
                loss, accuracy = _scores(logits, shown.labels)
                if not math.isfinite(loss):
                    raise DivergedError(_diverged("validation loss", loss, loop.step))
                loop.end_epoch(loss, accuracy)
        ended = loop.at_epoch_end and not loop.lacks_validation
        if saved and (leave or ended) and distribution.is_chief(strategy):
            checkpoint.save(saved, identity, loop.state())
        if ended:  # told once it can no longer be lost
            on_epoch(loop.history[-1], loop.epochs, loop.left_after(loop.history[-1]))
        if leave:
            raise Interrupted(saved is not None)
    if logits is None:  # the process ended after its last epoch
        measured.set_weights(model.get_weights())
        logits = answer(validation, candidate.input_size, asked_to_end)
        if logits is None:
            raise Interrupted(saved is not None)
    plain = mobilenet.build(candidate, classes)
    plain.set_weights(model.get_weights())
    temperature = metrics.fit_temperature(logits, validation.labels)
    head = plain.get_layer("logits")
    head.set_weights([weight / temperature for weight in head.get_weights()])
    return Trained(plain, loop.history, origin, loop.length / loop.per_epoch, loop.cpu_seconds, temperature)


def plan(
    loop: "_Loop",
    evaluate: Callable[[Images, int], object],
    validation: Images,
    say: Callable[[str], None],
    asked_to_end: Callable[[], bool],
) -> tuple[int, budget.Costs]:
    """How many steps to train, and what they cost, after timing a few; what is said is how long that will take.

    Raises ValueError where `cpu_minutes` do not suffice for one epoch, and Interrupted.
    """
    candidate, per_epoch = loop.candidate, loop.per_epoch
    costs, wall = _costs(loop, evaluate, validation, asked_to_end)
    if candidate.epochs is None:
        length = budget.affordable(costs, per_epoch, loop.seconds_left)
        if length < per_epoch:
            one = costs.between(0, per_epoch, per_epoch, per_epoch) + costs.last
            least = math.ceil((one + loop.cpu_seconds + RESERVE_SECONDS) / (1 - RESERVE) / 6) / 10
            raise ValueError(
                f"cpu_minutes is {candidate.cpu_minutes:.3g}, and one epoch with its validation takes {one / 60:.2g} "
                f"here, after {loop.cpu_seconds / 60:.2g} to make ready: raise it to {least:g} at least, or lower "
                "alpha or input_sizes"
            )
    else:
        length = per_epoch * candidate.epochs
    cpu = costs.between(0, length, length, per_epoch) + costs.last
    short = cpu * wall < 60
    taken = "less than a minute" if short else f"about {cpu * wall / 60:.0f} minutes, {cpu / 60:.0f} of CPU time"
    say(f"{length / per_epoch:.3g} epochs will take {taken}")
    return length, costs


def _costs(
    loop: "_Loop",
    evaluate: Callable[[Images, int], object],
    validation: Images,
    asked_to_end: Callable[[], bool],
) -> tuple[budget.Costs, float]:
    """What was timed, and the wall seconds that a CPU second takes."""

    def time_of(work: Callable[[], object]) -> np.ndarray:
        """Wall and CPU seconds."""
        if asked_to_end():
            raise Interrupted(saved=False)
        before = time.perf_counter(), time.process_time()
        work()
        return np.subtract((time.perf_counter(), time.process_time()), before)

    some = _first(validation, TRIAL_IMAGES)
    glance, whole = min(GLANCE, len(validation.labels)) / len(some.labels), len(validation.labels) / len(some.labels)
    epochs = []
    for size in loop.candidate.input_sizes:
        time_of(partial(loop.rehearse, size, 1))  # this and the next trace and warm up
        time_of(partial(evaluate, some, size))
        few, more = (time_of(partial(loop.rehearse, size, count)) for count in TRIAL_STEPS)
        each = np.maximum(more - few, 0) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])
        validated = time_of(partial(evaluate, some, size))
        epochs.append(few + each * (loop.per_epoch - TRIAL_STEPS[0]) + glance * validated)
    wall, cpu = sum(epochs)
    return budget.Costs([float(epoch[1]) for epoch in epochs], float(whole * validated[1])), wall / cpu


def steps_at_once(seconds: float) -> int:
    """How many steps of that many CPU seconds run in the graph between two looks from Python."""
    return CHUNK if seconds * CHUNK <= CHUNK_SECONDS else max(1, int(CHUNK_SECONDS / seconds))


def _first(images: Images, count: int) -> Images:
    return Images(images.pixels[:count], images.labels[:count])


class _Loop:
    """A training between two steps: what changes from step to step, and how."""

    def __init__(
        self, candidate: Candidate, model: keras.Model, strategy: tf.distribute.Strategy, training: Images
    ) -> None:
        self.candidate, self.model, self.strategy, self.training = candidate, model, strategy, training
        self.batch = candidate.batch_size * strategy.num_replicas_in_sync
        self.per_epoch = len(training.labels) // self.batch
        with distribution.peers_named(), strategy.scope():
            self.schedule = OneCycle()
            self.optimizer = optimizer.optimizer_of(candidate, self.schedule)
            self.optimizer.build(model.trainable_variables)
        self.run = steps.steps_in_graph(strategy, model, self.optimizer, candidate, self.batch)
        self.step, self.totals = 0, (0.0, 0.0)
        self.history: list[Epoch] = []
        self.spent = 0.0

    def rehearse(self, size: int, count: int) -> None:
        """Take `count` steps that leave nothing behind."""
        before, kept = self.model.get_weights(), [np.asarray(v) for v in self.optimizer.variables]
        with distribution.peers_named():
            self.run(self._stream(count), tf.constant(count), size)
        self.model.set_weights(before)
        for variable, value in zip(self.optimizer.variables, kept, strict=True):
            variable.assign(value)

    def begin(self, length: int, costs: budget.Costs, state: checkpoint.State | None) -> None:
        """Make ready for a training of `length` steps, or for what is left of it after `state`."""
        self.costs, self.resumed_at = costs, state.step if state else -1
        self._last_until(length)
        if state:
            self._restore(state)
        self.spent_before = self.cpu_seconds
        self.clock = time.perf_counter() - (state.seconds if state else 0)
        self.stream = self._stream(self.candidate.epochs or budget.MOST_EPOCHS)

    def _last_until(self, length: int) -> None:
        self.length, self.epochs = length, -(-length // self.per_epoch)
        rate = self.candidate.learning_rate * self.strategy.num_replicas_in_sync
        self.schedule.set(rate, self.candidate.warmup, length)

    def _stream(self, epochs: int) -> Iterator:
        """Batches from the next step to the end of that many epochs."""
        images = self.training
        return iter(
            distribution.pieces(
                self.strategy,
                lambda share: dataset.training_batches(
                    images.pixels, images.labels, self.candidate, self.batch, epochs, share, self.step
                ),
            )
        )

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.per_epoch == 0 or self.step == self.length

    @property
    def steps_of_epoch(self) -> int:
        """How many the current epoch has; the last one may be cut short."""
        return min(self.per_epoch, self.length - len(self.history) * self.per_epoch)

    @property
    def lacks_validation(self) -> bool:
        """Whether an epoch is trained and has no row in the history yet."""
        return self.at_epoch_end and len(self.history) * self.per_epoch < self.step

    @property
    def size_before(self) -> int:
        """The input size of the last step that was taken."""
        return self.candidate.input_sizes[self._phase(self.step - 1)]

    def _phase(self, step: int) -> int:
        """Which of the input sizes the step has."""
        return step * len(self.candidate.input_sizes) // self.length

    @property
    def cpu_seconds(self) -> float:
        return self.spent + time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds of the current epoch, those of a process before this one too."""
        return time.perf_counter() - self.clock

    @property
    def seconds_left(self) -> float:
        """CPU seconds of the budget, but for the reserve."""
        given = (self.candidate.cpu_minutes or 0) * 60
        return given - max(given * RESERVE, RESERVE_SECONDS) - self.cpu_seconds

    def advance(self) -> None:
        """Take a few steps, all of one epoch and of one input size. Raises DivergedError."""
        phase, sizes = self._phase(self.step), self.candidate.input_sizes
        # Several workers have measured each for itself; taking other numbers, they would wait for each other for ever.
        count = steps_at_once(self.costs.epochs[phase] / self.per_epoch) if distribution.workers() == 1 else 1
        next_phase = -(-(phase + 1) * self.length // len(sizes))
        count = min(count, self.steps_of_epoch - self.step % self.per_epoch, next_phase - self.step)
        with distribution.peers_named():
            done, losses, hits = self.run(self.stream, tf.constant(count), sizes[phase])
        self.step += int(done)
        if not math.isfinite(float(losses)):
            raise DivergedError(_diverged("loss", float(losses), self.step))
        self.totals = self.totals[0] + float(losses), self.totals[1] + float(hits)

    def end_epoch(self, loss: float, accuracy: float) -> None:
        """Put the epoch's row into the history."""
        seconds = self.seconds
        rate = float(self.schedule(self.step - 1))
        losses, hits = self.totals[0] / self.steps_of_epoch, self.totals[1] / (self.steps_of_epoch * self.batch)
        row = Epoch(len(self.history) + 1, rate, losses, hits, loss, accuracy, seconds)
        self.history.append(row)
        self.totals, self.clock = (0.0, 0.0), time.perf_counter()
        if self.candidate.epochs is None and self.step < self.length:
            self._plan_again()

    def _plan_again(self) -> None:
        """Change the length, so that the budget is kept where steps take more time than was measured, or less."""
        taken, self.spent_before = self.cpu_seconds - self.spent_before, self.cpu_seconds
        began = self.step - self.per_epoch
        if began > self.resumed_at:  # else it is a part of an epoch, or has built the graphs, too
            self.costs = self.costs.times(taken / self._cost(began, self.step))
        self._last_until(budget.affordable(self.costs, self.per_epoch, self.seconds_left, self.step))

    def _cost(self, first: int, step: int) -> float:
        return self.costs.between(first, step, self.length, self.per_epoch)

    def left_after(self, row: Epoch) -> float:
        """Wall seconds from that epoch to the end, as far as its own tell."""
        end = min(row.epoch * self.per_epoch, self.length)
        return row.seconds * self._cost(end, self.length) / self._cost((row.epoch - 1) * self.per_epoch, end)

    def state(self) -> checkpoint.State:
        """Everything that `_restore` needs."""
        optimizer = [np.asarray(v) for v in self.optimizer.variables]
        named = {"weight": self.model.get_weights(), "optimizer": optimizer}
        arrays = {f"{kind}_{index}": value for kind, values in named.items() for index, value in enumerate(values)}
        history = to_rows(self.history)
        return checkpoint.State(
            self.step, self.length, self.costs, arrays, self.totals, self.seconds, history, self.cpu_seconds
        )

    def _restore(self, state: checkpoint.State) -> None:
        def numbered(kind: str, count: int) -> list[np.ndarray]:
            return [state.arrays[f"{kind}_{index}"] for index in range(count)]

        self.model.set_weights(numbered("weight", len(self.model.weights)))
        for variable, value in zip(
            self.optimizer.variables, numbered("optimizer", len(self.optimizer.variables)), strict=True
        ):
            variable.assign(value)
        self.step, self.totals, self.spent = state.step, state.totals, state.cpu_seconds
        self.history = [Epoch(**row) for row in state.history]


def _logits(
    answer: Callable[[tf.Tensor, int], tf.Tensor],
    images: Images,
    size: int,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """A model's logits (n, classes) for the images, enlarged to `size`; None where it was asked to end meanwhile."""
    found = []
    for batch in tf.data.Dataset.from_tensor_slices(images.pixels).batch(PIECE):
        if asked_to_end():
            return None
        found.append(answer(batch, size).numpy())
    return np.concatenate(found)


def _code() -> str:
    """SHA-256, hex, of what decides how a training goes on: other code does not take its state up."""
    modules = (anatomy, budget, checkpoint, dataset, distribution, fast_layers, mobilenet, optimizer, steps)
    files = [__file__, *(str(module.__file__) for module in modules)]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and share of right answers."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels.astype(np.int32), logits)
    return float(tf.reduce_mean(losses)), float((logits.argmax(axis=1) == labels).mean())


def _diverged(what: str, value: float, step: int) -> str:
    return f"the {what} is {value} at step {step}: training stopped. Lower learning_rate, or look for broken images"


def to_rows(history: list[Epoch]) -> list[dict]:
    """The learning curve as dictionaries, a row an epoch."""
    return [asdict(epoch) for epoch in history]
