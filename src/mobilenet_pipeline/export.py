"""Trained model to the artefact that is served, and proof that both answer alike."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from mobilenet_pipeline.artefact import Artefact
from mobilenet_pipeline.config import ServedPrecision

HEAD = ["FULLY_CONNECTED", "SOFTMAX"]
"""Operations that stay float32 in an int8 artefact."""

TOLERANCE = 1e-4
"""The largest difference of a probability between model and artefact."""


class ParityError(ValueError):
    """The artefact answers differently from the model it was made from."""


def export(
    model: keras.Model, path: Path, precision: ServedPrecision = "float32", calibration: np.ndarray | None = None
) -> dict:
    """Write `model` as LiteRT to `path`, whole or not at all; its size in bytes, SHA-256 and precision.

    With "int8", weights and activations are integers of 8 bits (Jacob et al. 2018, arXiv:1712.05877), but for the head,
    whose probabilities would be rounded to multiples of 1/256. The range of every activation is what the images
    `calibration` uint8 (n, 32, 32, 3) have. Raises ValueError where there are none.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        if precision == "float32":
            model.export(made, format="litert", verbose=False)
        elif calibration is None or not len(calibration):
            raise ValueError("int8 needs images to calibrate the ranges of its activations with; give some")
        else:
            made.write_bytes(_quantised(model, calibration, Path(folder) / "saved"))
        os.replace(made, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size, "precision": precision}


def _quantised(model: keras.Model, calibration: np.ndarray, folder: Path) -> bytes:
    import tensorflow as tf

    def one_by_one() -> Iterator[list[np.ndarray]]:
        for image in calibration:
            yield [image[np.newaxis]]

    model.export(folder, format="tf_saved_model", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = one_by_one
    # The converter alone has no way to leave an operation out; the debugger has.
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=HEAD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=one_by_one, debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


def check_parity(model: keras.Model, path: Path, images: np.ndarray) -> dict:
    """Compare a float32 artefact with its model on `images` (n, 32, 32, 3) uint8.

    Raises ParityError when a class differs, or a probability by more than `TOLERANCE`. An image whose two best classes
    are closer together than the two answers could decide either way is still counted, and refused.
    """
    found = compare(model, path, images)
    differences, largest = found["argmax_differences"], found["max_probability_difference"]
    if differences or not largest <= TOLERANCE:  # a comparison with NaN is never true
        raise ParityError(
            f"{path} does not answer like its model: {differences} of {len(images)} classes differ, probabilities by "
            f"up to {largest:.1e} (limit {TOLERANCE:.0e}); it was not accepted"
        )
    return found


def compare(model: keras.Model, path: Path, images: np.ndarray, batch: int = 50) -> dict:
    """How far artefact and model are apart on `images` (n, 32, 32, 3) uint8."""
    artefact = Artefact(path)
    differences, largest = 0, 0.0
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        ours, theirs = np.asarray(model(part, training=False)), artefact.predict(part)
        differences += int(np.sum(ours.argmax(-1) != theirs.argmax(-1)))
        largest = float(np.max([largest, np.abs(ours - theirs).max()]))
    return {"rows": len(images), "argmax_differences": differences, "max_probability_difference": largest}
