"""Temperature scaling: one number that calibrates a model's probabilities (Guo et al. 2017)."""

import math

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest cross-entropy on `labels` (n,).

    The temperature divides `logits` (n, k); it is between 1/20 and 20 (Guo et al. 2017, arXiv:1706.04599). A share of
    1 / (n + 2) of each label is spread over all classes: without a mistake among n images, the chance of one is still
    not zero, and the temperature would go to its limit (after Platt 1999, section 2.2, for two classes).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    exact, actual = logits.astype(np.float64), labels.astype(np.int64)
    rows, spread = np.arange(len(actual)), 1 / (len(actual) + 2)

    def loss(log_temperature: float) -> float:
        logs = log_softmax(exact / math.exp(log_temperature), axis=1)
        return -float((1 - spread) * logs[rows, actual].mean() + spread * logs.mean())

    limit = math.log(20)
    return math.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x)
