"""How long a step of data-parallel training takes: compute, and what the workers exchange."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Step:
    """What a step costs one worker.

    `per_step` and `per_image` are seconds of compute, `bytes` the gradients and moments of all variables, `calls` the
    number of all-reduces a step, `latency` seconds of a message, `bandwidth` bytes a second of a worker's link.
    """

    per_step: float
    per_image: float
    bytes: float
    calls: float
    latency: float
    bandwidth: float

    def compute(self, images: float) -> float:
        """Return the seconds of compute for so many images on one worker."""
        return self.per_step + self.per_image * images

    def exchange(self, workers: int) -> float:
        """Return the seconds in which the workers sum gradients, by the faster of two ways; none for one worker.

        In a ring, each worker sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages (Patarasu and Yuan 2009). In a
        pair of trees, it sends twice the bytes, and a sum needs 2 log2(n) messages (Sanders et al. 2009).
        """
        ring = 2 * (workers - 1) * self.latency * self.calls + 2 * (workers - 1) / workers * self.bytes / self.bandwidth
        trees = 2 * math.log2(workers) * self.latency * self.calls + 2 * self.bytes / self.bandwidth
        return min(ring, trees)

    def seconds(self, workers: int, images: float) -> float:
        """Return the seconds of a step with so many images on each worker."""
        return self.compute(images) + self.exchange(workers)

    def efficiency(self, workers: int, images: float) -> float:
        """Return the speed of the workers ÷ that of as many single workers with as many images each."""
        return self.compute(images) / self.seconds(workers, images)

    def slowed(self, factor: float) -> "Step":
        """Return the step on a processor whose other cores work, too: its compute takes `factor` times as long."""
        return replace(self, per_step=self.per_step * factor, per_image=self.per_image * factor)


def line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Return (y at x = 0, slope) of the line through two points (x, y)."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] - slope * first[0], slope
