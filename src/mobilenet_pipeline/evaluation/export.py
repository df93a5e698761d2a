"""Export a trained model as the served artefact, and check that both give the same answers."""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from mobilenet_pipeline.config import ServedPrecision
from mobilenet_pipeline.inference.artefact import INPUT, OUTPUTS, Artefact

FLOAT_OPERATIONS = ["FULLY_CONNECTED", "SOFTMAX", "REDUCE_MAX", "LOG", "SUB"]
"""Operations that stay float32 in an int8 artefact: those of probabilities and energy."""

FLOAT_CONVOLUTIONS = 7
"""The number of convolutions that stay float32 in an int8 artefact, with all operations before them.

In MobileNet v1 they are those of the stem and three blocks. They have few weights, and their rounding errors reach all
that follows. At 128 pixels with α 0.75, the mean KL divergence from the model's probabilities is 0.002 with them in
float32, and 0.016 with them in int8. An image takes 1.4 and 0.9 ms, and 2.6 ms with all in float32 (AMD EPYC, one
thread, 2026-11-30). A network with no more convolutions has all of them in int8.
"""

TOLERANCE = 1e-4
"""The largest accepted difference between a probability of the model and of the artefact; of energies, relative."""


class ParityError(ValueError):
    """The artefact's answers differ from its model's."""


def load_model(path: Path) -> keras.Model:
    """Load a trained model onto the CPU.

    The artefact is served on CPUs. A GPU's reduced precision would look like an export error.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return keras.models.load_model(path, compile=False)


def export(
    model: keras.Model,
    path: Path,
    precision: ServedPrecision = "float32",
    calibration: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> dict:
    """Write `model` atomically to `path` as LiteRT, with its class names.

    The artefact gives the probabilities and the energy of an image (see `inference.artefact.Answers`). Returns its
    SHA-256, its size in bytes, and its precision. With "int8", weights and activations are 8-bit integers
    (Jacob et al. 2018, arXiv:1712.05877). The first `FLOAT_CONVOLUTIONS` stay float32. So does the head, because int8
    would round probabilities to multiples of 1/256. `calibration` uint8 (n, h, w, 3) are the images that give the range
    of every activation. Raises ValueError if int8 has no calibration images, or if the model does not end with a
    Softmax layer.

    `zipfile` reads labels.txt and metadata.json from the file.
    """
    if precision == "int8" and (calibration is None or not len(calibration)):
        raise ValueError(
            "int8 needs calibration images for its activation ranges, but there are none; pass training images"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        artefact = Path(folder) / path.name
        content = _converted(with_energy(model), Path(folder) / "saved", calibration if precision == "int8" else None)
        artefact.write_bytes(content)
        if class_names:
            _append_metadata(artefact, class_names)
        os.replace(artefact, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size, "precision": precision}


def with_energy(model: keras.Model) -> keras.Model:
    """Return the model with the outputs `probabilities` (n, classes) and `energy` (n,), the logsumexp of the logits.

    Raises ValueError if the model does not end with a Softmax layer.
    """
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Softmax):
        raise ValueError(
            f"the model ends with {last.name}, a {type(last).__name__} layer; end it with a Softmax layer, whose input "
            "are the logits"
        )
    # Equal to the logsumexp, as p = exp(logit − logsumexp) for every class, and safe: the largest p is never near 0.
    energy = keras.ops.max(last.input, axis=-1) - keras.ops.log(keras.ops.max(model.output, axis=-1))
    return keras.Model(model.input, {"probabilities": model.output, "energy": energy}, name=model.name)


def _append_metadata(artefact: Path, class_names: Sequence[str]) -> None:
    """Append labels.txt and metadata.json as a zip archive, as TFLite Metadata does; LiteRT ignores what follows."""
    metadata = {"class_names": list(class_names), "input": INPUT, "outputs": OUTPUTS}
    with zipfile.ZipFile(artefact, "a") as archive:
        # A ZipInfo has a fixed date: the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo("labels.txt"), "".join(f"{name}\n" for name in class_names))
        archive.writestr(zipfile.ZipInfo("metadata.json"), json.dumps(metadata, ensure_ascii=False))


def _converted(model: keras.Model, folder: Path, calibration: np.ndarray | None) -> bytes:
    """Return the model as LiteRT, in int8 if there are `calibration` images. Writes into `folder`."""
    import tensorflow as tf

    _save_frozen(model, folder)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    float_artefact = converter.convert()
    if calibration is None:
        return float_artefact

    def images() -> Iterator[list[np.ndarray]]:
        for image in calibration:
            yield [image[np.newaxis]]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = images
    # Only the debugger can exclude operations from quantisation.
    options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_ops=FLOAT_OPERATIONS, denylisted_nodes=_first_operations(float_artefact)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=images, debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


def _save_frozen(model: keras.Model, folder: Path) -> None:
    """Write a SavedModel with one function, whose weights are constants.

    Keras's own export writes every layer: a float32 artefact takes 4.7 instead of 1.2 CPU s (Keras 3.15,
    TensorFlow 2.21, MobileNet with α 0.25, AMD EPYC, 2026-11-30).
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")
    traced = tf.function(lambda image: model(image, training=False), [image]).get_concrete_function()
    frozen = convert_variables_to_constants_v2(traced)
    names = sorted(traced.structured_outputs)  # the order of the outputs
    module = tf.Module()
    module.serve = tf.function(lambda image: dict(zip(names, frozen(image), strict=True)), [image])
    tf.saved_model.save(module, folder, signatures=module.serve)


def _first_operations(artefact: bytes) -> list[str]:
    """Return the names of the operations of a float32 artefact that stay float32 before its head.

    An operation's name is that of its first output tensor.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(artefact))
    (graph,) = content.subgraphs
    names, convolutions = [], 0
    for operation in graph.operators:
        kind = flatbuffer_utils.opcode_to_name(content, operation.opcodeIndex)
        names.append(graph.tensors[operation.outputs[0]].name.decode())
        convolutions += kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
        if convolutions > FLOAT_CONVOLUTIONS:
            return names[:-1]
    return []


def check_parity(model: keras.Model, path: Path, images: np.ndarray, rows: np.ndarray | None = None) -> dict:
    """Compare a float32 artefact with its model and return the differences, as `compare` does.

    Raises ParityError if any predicted class differs, or a probability or energy differs by more than `TOLERANCE`.
    """
    parity = compare(model, path, images, rows)
    differences, largest = parity["argmax_differences"], parity["max_probability_difference"]
    energy = parity["max_energy_difference"]
    if differences or not largest <= TOLERANCE or not energy <= TOLERANCE:  # NaN <= TOLERANCE is false
        raise ParityError(
            f"{path} does not answer like its model: {differences} of {parity['rows']} classes differ, probabilities "
            f"by up to {largest:.1e}, energies by up to {energy:.1e} of their size (limit {TOLERANCE:.0e}); it was not "
            "accepted"
        )
    return parity


def compare(
    model: keras.Model, path: Path, images: np.ndarray, rows: np.ndarray | None = None, batch: int = 50
) -> dict:
    """Return the differences of artefact and model on these `rows` of uint8 `images` (n, h, w, 3), or on all.

    Differences of energies are relative to the energy, or absolute for energies below 1. Raises ValueError if the
    artefact gives no energies.
    """
    artefact, complete = Artefact(path), with_energy(model)
    rows = np.arange(len(images)) if rows is None else rows
    differences, largest, energies = 0, 0.0, 0.0
    for start in range(0, len(rows), batch):
        part = np.ascontiguousarray(images[rows[start : start + batch]])
        told, answers = complete(part, training=False), artefact.answer(part)
        if answers.energy is None:
            raise ValueError(f"{path} gives no energies: it is of an earlier release; export its model again")
        expected, energy = np.asarray(told["probabilities"]), np.asarray(told["energy"])
        differences += int(np.sum(expected.argmax(-1) != answers.probabilities.argmax(-1)))
        largest = float(np.max([largest, np.abs(expected - answers.probabilities).max()]))
        relative = np.abs(energy - answers.energy) / np.maximum(1, np.abs(energy))
        energies = float(np.max([energies, relative.max()]))
    return {
        "rows": len(rows),
        "argmax_differences": differences,
        "max_probability_difference": largest,
        "max_energy_difference": energies,
    }
