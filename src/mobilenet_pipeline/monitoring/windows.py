"""Cut the time of recorded answers into windows that have enough images and failed requests. Pure."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """How long windows are: at least `seconds`, and as much longer as `images` images or failed requests take.

    Every window ends at a multiple of `seconds`, so that two programs cut the same windows.
    """

    name: str
    seconds: float
    images: int


def cut(at: np.ndarray, since: float, now: float, scale: Scale) -> list[tuple[float, float]]:
    """Return start and end of every finished window after `since`, one after the other.

    `at` (n,) are the times of images and failed requests in rising order. The time after the last end is the begin of
    the next window, which has too few yet.
    """
    windows: list[tuple[float, float]] = []
    while True:
        last = int(np.searchsorted(at, since)) + scale.images - 1
        if last >= len(at):
            return windows
        full = max(float(at[last]), since)
        end = (math.floor(full / scale.seconds) + 1) * scale.seconds
        if end > now:
            return windows
        windows.append((since, end))
        since = end
