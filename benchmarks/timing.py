"""How long something takes that is done again and again."""

import time
from collections.abc import Callable


def milliseconds(work: Callable[[], object], seconds: float) -> list[float]:
    """What each time took, for so long, and at least once."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return taken
