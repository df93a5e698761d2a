"""Training and validation images: a stratified split of the images that are not for testing. Pure."""

import numpy as np

from mobilenet_pipeline.config import Split
from mobilenet_pipeline.data.dataset import Dataset


def stratify(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `share` of every class of `labels` (n,).

    Returns ascending indices (kept, held out), together 0 … n-1. The same labels, share and seed give the same split.
    Raises ValueError if a class would have no image on one side.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * share)
        if not 0 < count < len(members):
            raise ValueError(
                f"a share of {share} of the {len(members)} images with label {label} leaves one side of the split empty"
            )
        held_out.append(rng.permutation(members)[:count])
    held = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def split_rows(data: Dataset, limits: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending row numbers (training, validation) of a dataset; a test image is in neither."""
    rows = np.flatnonzero(~data.is_test)
    kept, held_out = stratify(data.labels[rows], limits.validation_share, limits.seed)
    return rows[kept], rows[held_out]
