"""Compare the runtimes that could serve a trained model: speed, size and exactness.

LiteRT in float32 and int8, ONNX Runtime, a TensorFlow SavedModel and keras.Model.predict answer the same images in
turn, in one process, so that other load on the machine affects all of them. This program builds an optimised ONNX
graph: images become channels-first while they are bytes, batch normalisation is folded into the convolutions, and the
convolutions do the padding. LiteRT is exported in both precisions, independent of the recipe. The answers are compared
on the validation images; the test images are not read. The results are written to docs/results/runtimes.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mobilenet_pipeline.system import environment

environment.prepare()

import keeping
import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from onnx import helper, numpy_helper
from timing import milliseconds
from tqdm import tqdm

from mobilenet_pipeline import config
from mobilenet_pipeline.data import dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.evaluation import export
from mobilenet_pipeline.inference.artefact import Artefact
from mobilenet_pipeline.models import network
from mobilenet_pipeline.stages.export import CALIBRATION
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files, paths

RESULTS = Path("docs/results/runtimes.json")
PACKAGES = ("ai-edge-litert", "onnx", "onnxruntime", "tensorflow", "keras", "numpy")
LITERT, INT8, ONNX, SAVED, KERAS = "litert_float32", "litert_int8", "onnxruntime", "savedmodel", "keras"
TURNS, BATCH = 5, 64
COMPARED = 1_000
"""Validation images for the comparison of probabilities. The accuracy is on all of them."""
OPSET, IR_VERSION = 18, 8
"""The oldest versions with everything that the graph needs, so that older ONNX Runtimes can read it."""
NO_PADDING = ((0, 0), (0, 0))
"""(before, after) of height and width."""

Answer = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (n, 32, 32, 3) to probabilities float32 (n, classes)."""


class UnsupportedError(ValueError):
    """The ONNX graph does not support a layer. The message begins with the layer's name."""


@dataclass(frozen=True)
class Runtime:
    """A loaded model: its bytes on disk, and its `answers` functions by number of threads.

    TensorFlow has one number of threads for the whole process, here 1.
    """

    size: int
    answers: Mapping[int, Answer]


def main() -> int:
    """Measure the runtimes, print and write the results, and return the exit status.

    It is 1, and nothing is written, if float32 answers differ from Keras's.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a section of params.yaml")
    parser.add_argument("candidate")
    parser.add_argument("--model", type=Path, help="default: models/RECIPE/CANDIDATE/model.keras")
    parser.add_argument("--seconds", type=float, default=1, help="for each figure and turn (default: %(default)g)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    chosen = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    try:
        recipe = config.load_recipe(chosen.recipe)
        path = files.existing(chosen.model or paths.model_folder(recipe, chosen.candidate) / "model.keras")
        data = dataset.open_dataset(paths.data_folder(recipe))
        figures = measure(path, recipe, data, chosen.seconds)
    except (UnsupportedError, dataset.DatasetError, files.WorkspaceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    errors = [
        f"{name} differs from the model: its probabilities differ by up to {row['largest_difference']:.1e}"
        for name, row in figures["runtimes"].items()
        if name != INT8 and not row["largest_difference"] <= export.TOLERANCE
    ]
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    if not errors:
        keep(chosen, figures)
    if machine.describe_machine()["cores"] < 2:
        print("this process has one core, so the figures for 2 threads are not valid", file=sys.stderr)
    print(json.dumps(figures["ratios"]))
    return 1 if errors else 0


def measure(path: Path, recipe: config.Recipe, data: dataset.Dataset, seconds: float) -> dict[str, Any]:
    """Return all figures of the Keras model `path`, and the ratios."""
    training, validation = split_rows(data, recipe.split)
    pixels, labels = np.asarray(data.images[validation]), data.labels[validation]
    with tempfile.TemporaryDirectory() as scratch:
        runtimes = load(path, np.asarray(data.images[training[:CALIBRATION]]), Path(scratch))
        exact = exactness(runtimes, pixels, labels)  # this warms up all runtimes
        times = speeds(runtimes, pixels, seconds)
    rows = {name: {"bytes": runtimes[name].size, **times[name], **exact[name]} for name in runtimes}
    return {
        "ratios": ratios(rows),
        "runtimes": rows,
        "model_sha256": files.sha256_of(path),
        "validation_images": len(pixels),
        "compared_images": min(COMPARED, len(pixels)),
    }


def load(path: Path, calibration: np.ndarray, scratch: Path) -> dict[str, Runtime]:
    """Return the Keras model `path` in every runtime; write their files to `scratch`."""
    model = keras.models.load_model(path, compile=False)
    files = {name: scratch / f"{name}.tflite" for name in (LITERT, INT8)}
    export.export(model, files[LITERT])
    export.export(model, files[INT8], precision="int8", calibration=calibration)
    graph = onnx_graph(model).SerializeToString()
    model.export(scratch / SAVED, format="tf_saved_model", verbose=False)
    signature = tf.saved_model.load(scratch / SAVED).signatures["serving_default"]
    return {
        **{
            name: Runtime(file.stat().st_size, {threads: Artefact(file, threads).predict for threads in (1, 2)})
            for name, file in files.items()
        },
        ONNX: Runtime(len(graph), {threads: partial(ask_onnx, onnx_session(graph, threads)) for threads in (1, 2)}),
        SAVED: Runtime(
            sum(file.stat().st_size for file in (scratch / SAVED).rglob("*") if file.is_file()),
            {1: partial(ask_signature, signature)},
        ),
        KERAS: Runtime(path.stat().st_size, {1: partial(model.predict, batch_size=BATCH, verbose=0)}),
    }


def onnx_session(graph: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session for the graph, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def ask_onnx(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities of ONNX Runtime."""
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def ask_signature(signature: Any, pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities of a SavedModel's signature."""
    (name,) = signature.structured_input_signature[1]
    return next(iter(signature(**{name: tf.constant(pixels)}).values())).numpy()


def exactness(runtimes: Mapping[str, Runtime], pixels: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return each runtime's differences from Keras, and its accuracy.

    The differences are on the first `COMPARED` images, the accuracy on all of them.
    """
    answers = {}
    for name, runtime in runtimes.items():
        answer = runtime.answers[max(runtime.answers)]
        parts = tqdm(range(0, len(pixels), BATCH), f"{name} on validation")
        answers[name] = np.concatenate([answer(pixels[start : start + BATCH]) for start in parts])
    reference = answers[KERAS][:COMPARED]
    return {
        name: {
            "largest_difference": float(np.abs(probabilities[:COMPARED] - reference).max()),
            "other_classes": int(np.sum(probabilities[:COMPARED].argmax(-1) != reference.argmax(-1))),
            "accuracy": float(np.mean(probabilities.argmax(-1) == labels)),
        }
        for name, probabilities in answers.items()
    }


def speeds(runtimes: Mapping[str, Runtime], pixels: np.ndarray, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the times of each runtime, a value per turn."""
    times: dict[str, dict[str, Any]] = {
        name: {
            "one_image_ms": [],
            "one_image_p99_ms": [],
            "images_per_second": {str(threads): [] for threads in runtime.answers},
        }
        for name, runtime in runtimes.items()
    }
    for turn, name in tqdm([(turn, name) for turn in range(TURNS) for name in runtimes], "turns"):
        taken = repeated(runtimes[name].answers[1], pixels[turn : turn + 1], seconds)
        times[name]["one_image_ms"].append(round(float(np.median(taken)), 4))
        times[name]["one_image_p99_ms"].append(round(float(np.percentile(taken, 99, method="inverted_cdf")), 4))
        for threads, answer in runtimes[name].answers.items():
            taken = repeated(answer, np.resize(pixels, (BATCH, *pixels.shape[1:])), seconds)
            rate = BATCH * len(taken) / sum(taken) * 1000
            times[name]["images_per_second"][str(threads)].append(round(rate, 1))
    return times


def repeated(answer: Answer, pixels: np.ndarray, seconds: float) -> list[float]:
    """Return the milliseconds of each answer during `seconds`.

    A first answer, which is not measured, allocates what this batch size needs.
    """
    answer(pixels)
    return milliseconds(partial(answer, pixels), seconds)


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the ratios of medians over the turns.

    A ratio above 1 means that the first runtime of its name has the larger value.
    """
    one = {name: statistics.median(figures["one_image_ms"]) for name, figures in rows.items()}
    batch = {name: statistics.median(figures["images_per_second"]["1"]) for name, figures in rows.items()}
    short = {ONNX: "onnx", SAVED: "savedmodel", KERAS: "keras", INT8: "int8"}
    return {
        **{f"{short[name]}_to_litert_one_image_ms": round(one[name] / one[LITERT], 3) for name in short},
        **{f"{short[name]}_to_litert_batch{BATCH}_rate": round(batch[name] / batch[LITERT], 3) for name in short},
        "int8_to_litert_bytes": round(rows[INT8]["bytes"] / rows[LITERT]["bytes"], 3),
        "int8_accuracy_points": round((rows[INT8]["accuracy"] - rows[KERAS]["accuracy"]) * 100, 2),
    }


def keep(chosen: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the model's figures and their origin."""
    command = f"python benchmarks/bench_runtimes.py {chosen.recipe} {chosen.candidate} --seconds {chosen.seconds:g}"
    command += f" --model {chosen.model}" if chosen.model else ""
    keeping.keep(chosen.results, f"{chosen.recipe}/{chosen.candidate}", figures, command, PACKAGES)


STANDARD = ["Moments", "Add", "Rsqrt", "Subtract", "Multiply", "Multiply"]
"""The operations of `pixel_range: standard` after the cast of the pixels."""


class Graph:
    """An ONNX graph in which each new node takes the output of the last node. Images are channels-first inside."""

    def __init__(self, start: str) -> None:
        self.last = start
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.padding = NO_PADDING
        """The padding that the next convolution has to add."""

    def add(self, kind: str, *weights: np.ndarray, **attributes: Any) -> None:
        """Add a node of this kind; an empty array means an omitted input."""
        names = [self.last]
        for array in weights:
            names.append(f"weight_{len(self.weights)}" if array.size else "")
            if array.size:
                self.weights[names[-1]] = array
        self.last = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [self.last], **attributes))


def onnx_graph(model: keras.Model) -> onnx.ModelProto:
    """Return the Keras model as ONNX, with the same input and output.

    Raises UnsupportedError, naming the layer, if a layer is not supported, or is not in one chain with the others.
    """
    first, *rest = model.operations
    graph, before = Graph(first.name), first
    graph.add("Transpose", perm=(0, 3, 1, 2))
    calls = {layer["name"]: layer["inbound_nodes"] for layer in model.get_config()["layers"]}
    if [type(operation).__name__ for operation in rest[1:7]] == STANDARD:
        cast(graph, rest[0], [])
        standardise(graph, first.output.shape[1:])
        before, rest = rest[6], rest[7:]
    for layer in rest:
        kind = type(layer).__name__
        if kind not in WRITERS:
            raise UnsupportedError(f"{layer.name} is a {kind}, which the ONNX graph does not support")
        if graph.padding != NO_PADDING and "Conv" not in kind:
            raise UnsupportedError(f"{before.name} must be followed by a convolution, which does the padding")
        if len(calls[layer.name]) != 1 or layer.input is not before.output:
            raise UnsupportedError(f"{layer.name} does not take the output of {before.name} as its only input")
        WRITERS[kind](graph, layer, calls[layer.name][0]["args"])
        before = layer
    if graph.padding != NO_PADDING:
        raise UnsupportedError(f"{before.name} must be followed by a convolution, which does the padding")
    if model.output is not before.output:
        raise UnsupportedError(f"{before.name} is the last layer, but not the output of the model")
    size, classes = first.batch_shape[1:], model.output.shape[-1]
    input_type, output_type = (
        helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)) for tensor in (first.output, model.output)
    )
    onnx_nodes = helper.make_graph(
        graph.nodes,
        "mobilenet",
        [helper.make_tensor_value_info(first.name, input_type, ["n", *size])],
        [helper.make_tensor_value_info(graph.last, output_type, ["n", classes])],
        [numpy_helper.from_array(array, name) for name, array in graph.weights.items()],
    )
    onnx_model = helper.make_model(onnx_nodes, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model


def must(layer: Any, **required: Any) -> None:
    """Raise UnsupportedError unless the layer has the required attributes."""
    for name, value in required.items():
        actual = getattr(layer, name)
        if actual != value:
            raise UnsupportedError(f"{layer.name} has {name} {actual}, but the ONNX graph supports only {value}")


def cast(graph: Graph, layer: Any, _: list) -> None:
    """Cast bytes to the layer's type."""
    graph.add("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(layer.dtype)))


def arithmetic(graph: Graph, layer: Any, arguments: list) -> None:
    """Add a scale or an offset."""
    numbers = [argument for argument in arguments if isinstance(argument, float | int)]
    if len(numbers) != 1:
        raise UnsupportedError(f"{layer.name} has no constant operand; the ONNX graph supports only numbers")
    graph.add({"Multiply": "Mul", "Add": "Add"}[type(layer).__name__], np.array(numbers, np.float32))


def standardise(graph: Graph, shape: tuple[int, int, int]) -> None:
    """Give each image (h, w, 3) of this shape the mean 0 and one deviation, as `pixel_range: standard` does."""
    scale = np.full((shape[2], *shape[:2]), network.DEVIATION, np.float32)
    graph.add("LayerNormalization", scale, axis=1, epsilon=network.LEAST_DEVIATION**2)


def resize(graph: Graph, layer: Any, _: list) -> None:
    """Resize as TensorFlow does: the corners of the outer pixels stay in place."""
    must(layer, interpolation="bilinear", antialias=False, data_format="channels_last")
    must(layer, crop_to_aspect_ratio=False, pad_to_aspect_ratio=False)
    nothing, size = np.empty(0, np.float32), np.array(layer.size, np.int64)
    attributes = {"coordinate_transformation_mode": "half_pixel", "mode": "linear"}
    graph.add("Resize", nothing, nothing, size, axes=[2, 3], **attributes)


def zero_padding(graph: Graph, layer: Any, _: list) -> None:
    """Let the next convolution add the padding."""
    must(layer, data_format="channels_last")
    graph.padding = tuple(tuple(sides) for sides in layer.padding)


def convolution(graph: Graph, layer: Any, _: list) -> None:
    """Add a standard or a depthwise convolution."""
    must(layer, data_format="channels_last", dilation_rate=(1, 1), activation=keras.activations.linear)
    before, after = zip(*graph.padding, strict=True)
    if layer.padding == "same":
        sizes = [size + sum(sides) for size, sides in zip(layer.input.shape[1:3], graph.padding, strict=True)]
        missing = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(sizes, layer.strides, layer.kernel_size, strict=True)
        ]
        # TensorFlow adds the odd pixel at the end; PyTorch does not.
        before = tuple(pad + more // 2 for pad, more in zip(before, missing, strict=True))
        after = tuple(pad + more - more // 2 for pad, more in zip(after, missing, strict=True))
    kernel = np.asarray(layer.kernel)
    if type(layer).__name__ == "DepthwiseConv2D":
        groups = kernel.shape[2]
        kernel = kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *layer.kernel_size)
    else:
        groups, kernel = layer.groups, kernel.transpose(3, 2, 0, 1)
    bias = np.asarray(layer.bias) if layer.use_bias else np.zeros(len(kernel), np.float32)
    attributes = {"kernel_shape": layer.kernel_size, "strides": layer.strides, "pads": (*before, *after)}
    graph.add("Conv", np.ascontiguousarray(kernel), bias, group=groups, **attributes)
    graph.padding = NO_PADDING


def batch_normalisation(graph: Graph, layer: Any, _: list) -> None:
    """Fold the normalisation into the convolution before it."""
    must(layer, axis=-1)
    if not graph.nodes or graph.nodes[-1].op_type != "Conv":
        raise UnsupportedError(f"{layer.name} must follow a convolution, which it is folded into")
    kernel, bias = graph.nodes[-1].input[1:]
    factor = 1 / np.sqrt(np.asarray(layer.moving_variance, np.float64) + layer.epsilon)
    factor = factor * np.asarray(layer.gamma) if layer.scale else factor
    moved = (graph.weights[bias] - np.asarray(layer.moving_mean)) * factor
    moved = moved + np.asarray(layer.beta) if layer.center else moved
    graph.weights[kernel] = (graph.weights[kernel] * factor[:, None, None, None]).astype(np.float32)
    graph.weights[bias] = moved.astype(np.float32)


def relu(graph: Graph, layer: Any, _: list) -> None:
    """Add a ReLU, with the layer's maximum if it has one."""
    must(layer, negative_slope=0, threshold=0)
    if layer.max_value is None:
        graph.add("Relu")
    else:
        graph.add("Clip", np.array(0, np.float32), np.array(layer.max_value, np.float32))


def pool(graph: Graph, layer: Any, _: list) -> None:
    """Add the average over the feature map."""
    must(layer, data_format="channels_last", keepdims=False)
    graph.add("GlobalAveragePool")
    graph.add("Flatten")


def dense(graph: Graph, layer: Any, _: list) -> None:
    """Add the dense head."""
    must(layer, activation=keras.activations.linear)
    bias = np.asarray(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
    graph.add("Gemm", np.asarray(layer.kernel), bias)


def softmax(graph: Graph, layer: Any, _: list) -> None:
    """Add the map from logits to probabilities."""
    must(layer, axis=-1)
    graph.add("Softmax", axis=-1)


WRITERS: dict[str, Callable[[Graph, Any, list], None]] = {
    "Cast": cast,
    "Multiply": arithmetic,
    "Add": arithmetic,
    "Resize": resize,
    "ZeroPadding2D": zero_padding,
    "Conv2D": convolution,
    "DepthwiseConv2D": convolution,
    "BatchNormalization": batch_normalisation,
    "ReLU": relu,
    "GlobalAveragePooling2D": pool,
    "Dense": dense,
    "Softmax": softmax,
}


if __name__ == "__main__":
    sys.exit(main())
