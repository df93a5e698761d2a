"""The cost of a training, and the number of steps in a CPU-time budget. Pure."""

from bisect import bisect_right
from dataclasses import dataclass

MOST_EPOCHS = 100_000
"""No training with a budget reaches this many epochs."""

RESERVE, RESERVE_SECONDS = 0.02, 2.0
"""The share of `cpu_minutes` that is reserved for delays after the last correction, and its minimum in seconds."""


@dataclass(frozen=True)
class Costs:
    """CPU seconds of one epoch at each input size, and of the last validation.

    With progressive resizing, each input size is used for the same share of the training.
    """

    epochs: list[float]
    last: float

    def times(self, slowness: float) -> "Costs":
        """Return the costs, all multiplied by `slowness`."""
        return Costs([cost * slowness for cost in self.epochs], self.last * slowness)

    def between(self, first: int, step: int, length: int, per_epoch: int) -> float:
        """Return the CPU seconds from step `first` to `step`.

        The training has `length` steps, and `per_epoch` steps per epoch.
        """
        share = length / len(self.epochs)
        bounds = [(max(first, index * share), min(step, (index + 1) * share)) for index in range(len(self.epochs))]
        return sum(
            max(end - begin, 0) * cost / per_epoch for (begin, end), cost in zip(bounds, self.epochs, strict=True)
        )


def affordable(costs: Costs, per_epoch: int, seconds: float, step: int = 0) -> int:
    """Return the length, in steps, of the longest training that fits the budget.

    The training is at `step` and has `seconds` of CPU time left. The result is at least `step + 1`, because a training
    ends with a step at the lowest rate and a validation.
    """
    left = seconds - costs.last
    lengths = range(step + 1, per_epoch * MOST_EPOCHS)
    fit = bisect_right(lengths, left, key=lambda length: costs.between(step, length, length, per_epoch))
    return step + max(fit, 1)


def remaining(cpu_minutes: float | None, used_seconds: float) -> float:
    """Return the CPU seconds that are left of the budget, without the reserve."""
    budget = (cpu_minutes or 0) * 60
    return budget - max(budget * RESERVE, RESERVE_SECONDS) - used_seconds


def minutes_for(seconds: float) -> float:
    """Return the budget in minutes for these CPU seconds and the reserve."""
    return (seconds + RESERVE_SECONDS) / (1 - RESERVE) / 60
