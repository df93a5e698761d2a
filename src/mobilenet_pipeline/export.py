"""Trained model to the artefact that is served, and proof that both answer alike."""

import hashlib
import os
import tempfile
from pathlib import Path

import keras
import numpy as np

from mobilenet_pipeline.artefact import Artefact

TOLERANCE = 1e-4
"""The largest difference of a probability between model and artefact."""


class ParityError(ValueError):
    """The artefact answers differently from the model it was made from."""


def export(model: keras.Model, path: Path) -> dict:
    """Write `model` as LiteRT to `path`, whole or not at all; its size in bytes and SHA-256."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        model.export(made, format="litert", verbose=False)
        os.replace(made, path)
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def check_parity(model: keras.Model, path: Path, images: np.ndarray, batch: int = 250) -> dict:
    """Compare model and artefact on `images` (n, 32, 32, 3) uint8.

    Raises ParityError when a class differs, or a probability by more than `TOLERANCE`. An image whose two best classes
    are closer together than the two answers could decide either way is still counted, and refused.
    """
    artefact = Artefact(path)
    differences, largest = 0, 0.0
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        ours, theirs = np.asarray(model(part, training=False)), artefact.predict(part)
        differences += int(np.sum(ours.argmax(-1) != theirs.argmax(-1)))
        largest = float(np.max([largest, np.abs(ours - theirs).max()]))
    if differences or not largest <= TOLERANCE:  # a comparison with NaN is never true
        raise ParityError(
            f"{path} does not answer like its model: {differences} of {len(images)} classes differ, probabilities by "
            f"up to {largest:.1e} (limit {TOLERANCE:.0e}); it was not accepted"
        )
    return {"rows": len(images), "argmax_differences": differences, "max_probability_difference": largest}
