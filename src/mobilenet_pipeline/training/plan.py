"""How many steps a training takes, which input size each of them has, and what they cost."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.training import budget
from mobilenet_pipeline.training.steps import Stepper, Validator

TRIAL_STEPS, TRIAL_IMAGES = (2, 12), 500
"""Training steps and validation images of each input size that are timed before a training.

Two trials of different length separate the cost of a step from the fixed cost of every trial and every epoch.
"""


@dataclass(frozen=True)
class Plan:
    """A training of `length` steps, `per_epoch` of them an epoch, and what it costs.

    The input `sizes`, in pixels, are used in turn, each for an equal share of the steps.
    """

    length: int
    per_epoch: int
    sizes: tuple[int, ...]
    costs: budget.Costs

    @property
    def epochs(self) -> int:
        """The number of epochs; the last one may be cut short."""
        return -(-self.length // self.per_epoch)

    def phase(self, step: int) -> int:
        """Return the index of the input size that `step` uses."""
        return step * len(self.sizes) // self.length

    def size(self, step: int) -> int:
        """Return the input size of `step`, in pixels."""
        return self.sizes[self.phase(step)]

    def next_phase(self, step: int) -> int:
        """Return the first step after `step` that uses another input size; `length` if there is none."""
        return -(-(self.phase(step) + 1) * self.length // len(self.sizes))

    def cost(self, first: int, step: int) -> float:
        """Return the CPU seconds from step `first` to `step`."""
        return self.costs.between(first, step, self.length, self.per_epoch)


def make_plan(
    stepper: Stepper, validator: Validator, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> Plan | None:
    """Time a few steps and return the plan of the training; None if a stop is requested meanwhile.

    `say` is told how long the training will take. Raises ValueError if `cpu_minutes` is not enough for one epoch.
    """
    candidate, per_epoch = stepper.candidate, stepper.per_epoch
    timed = _time(stepper, validator, should_stop)
    if timed is None:
        return None
    costs, wall_per_cpu = timed
    if candidate.epochs is None:
        used = time.process_time()
        length = budget.affordable(costs, per_epoch, budget.remaining(candidate.cpu_minutes, used))
        if length < per_epoch:
            raise ValueError(_too_little(candidate, costs, per_epoch, used))
    else:
        length = per_epoch * candidate.epochs
    plan = Plan(length, per_epoch, tuple(candidate.input_sizes), costs)
    cpu = plan.cost(0, length) + costs.last
    minutes = f"about {cpu * wall_per_cpu / 60:.0f} minutes, {cpu / 60:.0f} of CPU time"
    say(f"{length / per_epoch:.3g} epochs will take {'less than a minute' if cpu * wall_per_cpu < 60 else minutes}")
    return plan


def _time(stepper: Stepper, validator: Validator, should_stop: Callable[[], bool]) -> tuple[budget.Costs, float] | None:
    """Return the costs of an epoch at each input size, and wall seconds per CPU second."""
    trial, whole = min(TRIAL_IMAGES, validator.count), validator.count
    glance = validator.glance / trial
    epochs = []
    for size in stepper.candidate.input_sizes:
        validate = partial(validator.logits, trial, size)
        seconds = []
        # The first two trace and warm up.
        work: list[Callable[[], object]] = [
            partial(stepper.rehearse, size, 1),
            validate,
            *(partial(stepper.rehearse, size, count) for count in TRIAL_STEPS),
            validate,
        ]
        for trial_of in work:
            if should_stop():
                return None
            seconds.append(_seconds(trial_of))
        few, more, validated = seconds[2:]
        per_step = np.maximum(more - few, 0) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])
        epochs.append(few + per_step * (stepper.per_epoch - TRIAL_STEPS[0]) + glance * validated)
    wall, cpu = sum(epochs)
    last = whole / trial * validated[1]
    return budget.Costs([float(epoch[1]) for epoch in epochs], float(last)), wall / cpu


def _seconds(work: Callable[[], object]) -> np.ndarray:
    """Return the wall and CPU seconds that `work` takes."""
    before = time.perf_counter(), time.process_time()
    work()
    return np.subtract((time.perf_counter(), time.process_time()), before)


def _too_little(candidate: Candidate, costs: budget.Costs, per_epoch: int, used: float) -> str:
    epoch = costs.between(0, per_epoch, per_epoch, per_epoch) + costs.last
    least = math.ceil(budget.minutes_for(epoch + used) * 10) / 10
    return (
        f"cpu_minutes is {candidate.cpu_minutes:.3g}, but one epoch with its validation takes {epoch / 60:.2g} here, "
        f"after {used / 60:.2g} of preparation: set cpu_minutes to {least:g} or more, or lower alpha or input_sizes"
    )
