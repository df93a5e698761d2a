from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def calibrated() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A function that makes logits, and labels drawn from their softmax; `sharpen` makes the logits overconfident."""

    def make(rows: int, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 2, (rows, 10))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        return logits * sharpen, labels

    return make
