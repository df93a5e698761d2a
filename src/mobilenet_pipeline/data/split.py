"""Training and validation images: a stratified split of the images that are not for testing. Pure."""

import warnings
from fractions import Fraction
from itertools import islice

import numpy as np

from mobilenet_pipeline.config import Split
from mobilenet_pipeline.data.dataset import Dataset

NEAR = 0.05
"""Difference between the share that is asked for and one of a single fold, 1/2, 1/3 and so on, that is accepted."""


def stratify(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `share` of every class of `labels` (n,), and at least one image.

    Returns ascending indices (kept, held out), together 0 … n-1. The same labels, share and seed give the same split.
    Raises ValueError if a class would have no image on one side.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if not 0 < share < 1 or len(members) < 2:
            raise ValueError(
                f"a share of {share} of the {len(members)} images with label {label} leaves one side of the split "
                "empty; take a share between 0 and 1, and at least two images of every class"
            )
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        held_out.append(rng.permutation(members)[:count])
    held = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def hold_out(labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out about `share` of every class of `labels` (n,) so that no group is on both sides.

    `groups` (n,) are names; an image whose group is empty is a group of its own, and None means no groups. Returns
    ascending indices (kept, held out). Raises ValueError if a class would have no image on one side.
    """
    if groups is None or not (groups != "").any():
        return stratify(labels, share, seed)
    from sklearn.model_selection import StratifiedGroupKFold

    names, units = np.unique(groups.astype(str), return_inverse=True)
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} leaves one side of the split empty; take a share between 0 and 1")
    parts = int((names != "").sum() + (groups == "").sum())
    held, folds = _folds(share, int(np.unique(labels, return_counts=True)[1].max()), parts)
    _, kinds = np.unique(labels, return_inverse=True)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(groups == ""))
    for kind in np.unique(kinds[order]):  # the images without a group, in as many units as folds: few units are fast
        lone = order[kinds[order] == kind]
        units[lone] = len(names) + kind * folds + np.arange(len(lone)) % folds
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        is_held = np.zeros(len(labels), bool)
        for _, members in islice(splitter.split(labels, labels, units), held):
            is_held[members] = True
    for side in (True, False):  # of a small class, the smallest group moves
        for label in np.setdiff1d(labels, labels[is_held == side]):
            sizes = {unit: (units == unit).sum() for unit in np.unique(units[labels == label])}
            if len(sizes) < 2:
                raise ValueError(
                    f"all images with label {label} are of one group, which cannot be on both sides of a split; add "
                    "groups, or leave the class out"
                )
            is_held[units == min(sizes, key=lambda unit: sizes[unit])] = side
    if lacking := np.setdiff1d(labels, np.intersect1d(labels[is_held], labels[~is_held])).tolist():
        raise ValueError(f"no split by groups has images with label {lacking[0]} on both sides; add groups")
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _folds(share: float, images: int, parts: int) -> tuple[int, int]:
    """Return how many folds are held out, of how many, so that they come near to the share.

    There are at most as many folds as `images` of the largest class. `parts` is the number of groups and of images
    without one.
    """
    folds = max(2, round(1 / share))
    if abs(1 / folds - share) <= NEAR:
        return 1, min(folds, images)
    most = max(2, min(10, images, parts))  # few, so that each fold has a group
    near = min(Fraction(share).limit_denominator(most), Fraction(most - 1, most))
    return near.numerator, near.denominator


def split_rows(data: Dataset, limits: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending row numbers (training, validation) of a dataset; a test image is in neither.

    A group is on one side only.
    """
    rows = np.flatnonzero(~data.is_test)
    groups = None if data.groups is None else data.groups[rows]
    kept, held_out = hold_out(data.labels[rows], groups, limits.validation_share, limits.seed)
    return rows[kept], rows[held_out]
