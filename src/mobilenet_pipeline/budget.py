"""What a training costs, and how many steps of it a budget of CPU time pays for."""

from bisect import bisect_right
from dataclasses import dataclass

MOST_EPOCHS = 100_000
"""A training with a budget ends before."""


@dataclass(frozen=True)
class Costs:
    """CPU seconds of one epoch at each input size, and of the last validation.

    The sizes follow each other, each for the same share of the training.
    """

    epochs: list[float]
    last: float

    def times(self, slowness: float) -> "Costs":
        """What everything costs where it takes that much more than it did."""
        return Costs([cost * slowness for cost in self.epochs], self.last * slowness)

    def between(self, first: int, step: int, length: int, per_epoch: int) -> float:
        """CPU seconds from step `first` to `step` of a training of `length` steps, `per_epoch` of them an epoch."""
        share = length / len(self.epochs)
        bounds = [(max(first, index * share), min(step, (index + 1) * share)) for index in range(len(self.epochs))]
        return sum(
            max(end - begin, 0) * cost / per_epoch for (begin, end), cost in zip(bounds, self.epochs, strict=True)
        )


def affordable(costs: Costs, per_epoch: int, seconds: float, step: int = 0) -> int:
    """The most steps a training can have that is at `step` and has this much CPU time left.

    It is at least one step more than there are: a training ends with a step at the lowest rate, and a validation.
    """
    left = seconds - costs.last
    lengths = range(step + 1, per_epoch * MOST_EPOCHS)
    fit = bisect_right(lengths, left, key=lambda length: costs.between(step, length, length, per_epoch))
    return step + max(fit, 1)
