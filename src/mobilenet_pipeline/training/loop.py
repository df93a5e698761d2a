"""A training between two steps: where it stands, and how it moves on."""

import math
import time
from dataclasses import asdict, dataclass, replace

from mobilenet_pipeline.training import budget, checkpoint, distribution
from mobilenet_pipeline.training.plan import Plan
from mobilenet_pipeline.training.steps import Stepper

CHUNK, CHUNK_SECONDS = 10, 2.0
"""The maximum number of steps, and of CPU seconds, that run in the graph before Python looks for a stop request."""


class DivergedError(ValueError):
    """The loss is not finite."""


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve.

    Losses are cross-entropies per image, accuracies shares, `seconds` wall time, `input_size` that of the last step, in
    pixels.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    input_size: int


class Loop:
    """The position of a training in its plan: steps taken, sums of the current epoch, learning curve, time used.

    With a `state`, the training continues after that state's last step.
    """

    def __init__(self, stepper: Stepper, plan: Plan, state: checkpoint.State | None = None) -> None:
        self.stepper, self.plan, self.candidate = stepper, plan, stepper.candidate
        if state:
            stepper.restore(state.arrays)
        self.step = state.step if state else 0
        self.totals = state.totals if state else (0.0, 0.0)
        self.history = [Epoch(**row) for row in state.history] if state else []
        self._used_before = state.cpu_seconds if state else 0.0
        self._resumed_at = state.step if state else -1
        self._epoch_began_at = self.cpu_seconds
        self._clock = time.perf_counter() - (state.seconds if state else 0.0)
        self._batches = stepper.batches(self.step, self.candidate.epochs or budget.MOST_EPOCHS)
        stepper.set_length(plan.length)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of its epoch."""
        return self.step % self.plan.per_epoch == 0 or self.step == self.plan.length

    @property
    def lacks_validation(self) -> bool:
        """Whether an epoch is trained and has no row in the history yet."""
        return self.at_epoch_end and len(self.history) * self.plan.per_epoch < self.step

    @property
    def done(self) -> bool:
        """Whether every step is taken and every epoch validated."""
        return self.step == self.plan.length and not self.lacks_validation

    @property
    def last_size(self) -> int:
        """The input size of the last step, in pixels."""
        return self.plan.size(self.step - 1)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the training, those of earlier processes included."""
        return self._used_before + time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds of the current epoch, those of earlier processes included."""
        return time.perf_counter() - self._clock

    def advance(self) -> None:
        """Take a few steps, all in one epoch and at one input size. Raises DivergedError."""
        plan = self.plan
        # Workers measure different costs. With different numbers of steps they would wait for each other for ever.
        count = 1
        if distribution.workers() == 1:
            count = steps_at_once(plan.costs.epochs[plan.phase(self.step)] / plan.per_epoch)
        count = min(count, self._epoch_length - self.step % plan.per_epoch, plan.next_phase(self.step) - self.step)
        taken, losses, correct = self.stepper.take(self._batches, count, plan.size(self.step))
        self.step += taken
        check_finite("loss", losses, self.step)
        self.totals = self.totals[0] + losses, self.totals[1] + correct

    def end_epoch(self, loss: float, accuracy: float) -> None:
        """Add the epoch's row to the history. Raises DivergedError if the validation `loss` is not finite."""
        check_finite("validation loss", loss, self.step)
        seconds, length = self.seconds, self._epoch_length
        rate = float(self.stepper.schedule(self.step - 1))
        train_loss, train_accuracy = self.totals[0] / length, self.totals[1] / (length * self.stepper.batch)
        epoch, size = len(self.history) + 1, self.last_size
        self.history.append(Epoch(epoch, rate, train_loss, train_accuracy, loss, accuracy, seconds, size))
        self.totals, self._clock = (0.0, 0.0), time.perf_counter()
        if self.candidate.epochs is None and self.step < self.plan.length:
            self._correct_plan()

    def seconds_left_after(self, row: Epoch) -> float:
        """Estimate the wall seconds from the end of that epoch to the end of the training."""
        plan, end = self.plan, min(row.epoch * self.plan.per_epoch, self.plan.length)
        return row.seconds * plan.cost(end, plan.length) / plan.cost((row.epoch - 1) * plan.per_epoch, end)

    def state(self) -> checkpoint.State:
        """Return everything that a later process needs to continue."""
        return checkpoint.State(
            self.step,
            self.plan.length,
            self.plan.costs,
            self.stepper.arrays(),
            self.totals,
            self.seconds,
            [asdict(row) for row in self.history],
            self.cpu_seconds,
        )

    @property
    def _epoch_length(self) -> int:
        """The number of steps in the current epoch; the last epoch may be cut short."""
        return min(self.plan.per_epoch, self.plan.length - len(self.history) * self.plan.per_epoch)

    def _correct_plan(self) -> None:
        """Change the length so that the budget holds if steps take more or less time than measured."""
        used, self._epoch_began_at = self.cpu_seconds - self._epoch_began_at, self.cpu_seconds
        plan, first = self.plan, self.step - self.plan.per_epoch
        costs = plan.costs
        # Else `used` covers only a part of the epoch, or includes building the graphs.
        if first > self._resumed_at:
            costs = costs.times(used / plan.cost(first, self.step))
        left = budget.remaining(self.candidate.cpu_minutes, self.cpu_seconds)
        length = budget.affordable(costs, plan.per_epoch, left, self.step)
        self.plan = replace(plan, length=length, costs=costs)
        self.stepper.set_length(length)


def steps_at_once(seconds: float) -> int:
    """Return how many steps of so many CPU seconds run in the graph before Python looks for a stop request."""
    return CHUNK if seconds * CHUNK <= CHUNK_SECONDS else max(1, int(CHUNK_SECONDS / seconds))


def check_finite(name: str, value: float, step: int) -> None:
    """Raise DivergedError if `value` is not finite."""
    if not math.isfinite(value):
        raise DivergedError(
            f"the {name} is {value} at step {step}: training stopped. Lower learning_rate, or look for damaged images"
        )
