"""Draw less often the images that the network already knows (InfoBatch, Qin et al. 2024, arXiv:2303.04947)."""

import numpy as np

LAST_SHARE = 0.125
"""The share of a training, at its end, that draws every image again."""


def is_pruned(first: int, per_epoch: int, length: int) -> bool:
    """Return whether the epoch of `per_epoch` steps from step `first` on is pruned, in a training of `length` steps.

    The first epoch is not, because no losses are known, nor is one that reaches into the last `LAST_SHARE`.
    """
    return first > 0 and first + per_epoch <= (1 - LAST_SHARE) * length


def draw(losses: np.ndarray, pruned: float, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of an epoch, in order, and the weight of every image.

    `losses` (n,) are the images' last losses, NaN for an image without one. A share `pruned` of the images below the
    mean loss is left out, and others are drawn a second time in their place: the epoch, int32 (n,), has as many images
    as without. The weights, float32 (n,), make up for that in the gradients: they are proportional to 1 / (1 - pruned)
    for an image below the mean and to 1 for the others, and their mean over the epoch is 1.
    """
    known = losses < np.nanmean(losses)  # false for NaN
    shares = np.where(known, 1 - pruned, 1.0)
    rng = np.random.default_rng(seed)
    count, drawn = len(losses), np.zeros(0, np.int32)
    while len(drawn) < count:
        order = rng.permutation(count).astype(np.int32)
        drawn = np.concatenate([drawn, order[rng.random(count) < shares[order]]])
    drawn = drawn[:count]
    weights = 1 / shares
    return drawn, (weights / weights[drawn].mean()).astype(np.float32)
