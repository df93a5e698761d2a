"""Measure the time of repeated work."""

import time
from collections.abc import Callable


def milliseconds(work: Callable[[], object], seconds: float) -> list[float]:
    """Return the milliseconds of each call in `seconds`, at least of one call."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return taken
