"""Labels to stratified indices."""

import numpy as np


def stratify(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `share` of every class.

    `labels` is (n,). Returns ascending indices (kept, held out), together 0 … n-1. The same labels, share and seed give
    the same split. Raises ValueError when a class would be left without an image on either side.
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


def training_rows(labels: np.ndarray, is_test: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the whole dataset to train on and to validate on; a row of the test set is in neither.

    `labels` and `is_test` are (n,). Returns ascending row numbers (training, validation).
    """
    rows = np.flatnonzero(~is_test)
    kept, held_out = stratify(labels[rows], share, seed)
    return rows[kept], rows[held_out]
