"""The runtime benchmark: the ONNX graph is the Keras model, and figures of other models stay."""

import argparse
import json
from pathlib import Path

import bench_runtimes
import keras
import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.models import network

ROOT = Path(__file__).resolve().parents[2]
# In blocks: means of mere noise are alike, and normalising them would blow up rounding errors.
MANY = np.random.default_rng(0).integers(0, 256, (128, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
IMAGES = MANY[:8]
FIGURES = {
    name: {
        "bytes": size,
        "one_image_ms": [milliseconds, 100.0, 0.0],
        "one_image_p99_ms": [3.0, 2.0, 4.0],
        "images_per_second": {"1": [1000 / milliseconds, 0.0, 9999.0]},
        "largest_difference": 0.002,
        "other_classes": 3,
        "accuracy": accuracy,
    }
    for name, size, milliseconds, accuracy in (
        ("litert_float32", 4000, 2.0, 0.9),
        ("litert_int8", 1000, 1.0, 0.895),
        ("onnxruntime", 4000, 3.0, 0.9),
        ("savedmodel", 5000, 8.0, 0.9),
        ("keras", 5000, 40.0, 0.9),
    )
}


def small(strides: str, size: int, pixel_range: str = "signed") -> keras.Model:
    """Return an untrained model with effective batch normalisation, whose answers depend on the image."""
    candidate = (
        config.load_recipe("cifar10", ROOT / "params.yaml")
        .candidate("scratch")
        .model_copy(update={"alpha": 0.25, "strides": strides, "input_sizes": [size], "pixel_range": pixel_range})
    )
    keras.utils.set_random_seed(0)
    model = network.build(candidate, (32, 32, 3), 10)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0
            layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-1, 1, layer.beta.shape))
    model(MANY, training=True)  # the moving moments are those of the images
    model.get_layer("logits").kernel.assign(rng.normal(0, 0.05, model.get_layer("logits").kernel.shape))
    return model


def chain(*layers: keras.Layer) -> keras.Model:
    """Return a sequential model of these layers."""
    image = x = keras.Input((32, 32, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    ("strides", "size", "pixel_range"), [("stock", 48, "signed"), ("stem-1", 32, "signed"), ("stem-1", 32, "standard")]
)
def test_the_onnx_graph_answers_like_the_keras_model(strides, size, pixel_range):
    model = small(strides, size, pixel_range)
    expected = np.asarray(model(IMAGES, training=False))
    session = bench_runtimes.onnx_session(bench_runtimes.onnx_graph(model).SerializeToString())
    assert np.ptp(expected, axis=0).max() > 0.01  # else any graph would do
    np.testing.assert_allclose(bench_runtimes.ask_onnx(session, IMAGES), expected, atol=1e-4)
    np.testing.assert_allclose(bench_runtimes.ask_onnx(session, IMAGES[:1]), expected[:1], atol=1e-4)


def test_an_unknown_layer_is_refused_by_name():
    model = chain(keras.layers.Conv2D(4, 3), keras.layers.LayerNormalization(name="odd_one"))
    with pytest.raises(bench_runtimes.UnsupportedError, match=r"^odd_one is a LayerNormalization"):
        bench_runtimes.onnx_graph(model)


def test_an_unknown_option_of_a_layer_is_refused_by_name():
    model = chain(keras.layers.Conv2D(4, 3, activation="relu", name="with_relu"))
    with pytest.raises(bench_runtimes.UnsupportedError, match=r"^with_relu has activation"):
        bench_runtimes.onnx_graph(model)


@pytest.mark.parametrize(
    "layers",
    [
        (keras.layers.ZeroPadding2D(name="lost"), keras.layers.GlobalAveragePooling2D()),
        (keras.layers.GlobalAveragePooling2D(), keras.layers.BatchNormalization(name="lost")),
        (keras.layers.Conv2D(4, 3), keras.layers.ZeroPadding2D(name="lost")),
    ],
)
def test_a_layer_that_needs_a_convolution_is_refused_without(layers):
    with pytest.raises(bench_runtimes.UnsupportedError, match=r"^lost "):
        bench_runtimes.onnx_graph(chain(*layers))


def test_a_model_with_a_branch_is_refused():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    model = keras.Model(image, keras.ops.add(x, keras.layers.ReLU()(x)))
    with pytest.raises(bench_runtimes.UnsupportedError, match="does not take the output of"):
        bench_runtimes.onnx_graph(model)


def test_the_ratios_are_of_the_medians():
    assert bench_runtimes.ratios(FIGURES) == {
        "onnx_to_litert_one_image_ms": 1.5,
        "savedmodel_to_litert_one_image_ms": 4.0,
        "keras_to_litert_one_image_ms": 20.0,
        "int8_to_litert_one_image_ms": 0.5,
        "onnx_to_litert_batch64_rate": 0.667,
        "savedmodel_to_litert_batch64_rate": 0.25,
        "keras_to_litert_batch64_rate": 0.05,
        "int8_to_litert_batch64_rate": 2.0,
        "int8_to_litert_bytes": 0.25,
        "int8_accuracy_points": -0.5,
    }


def test_figures_of_other_models_stay(tmp_path: Path):
    results = tmp_path / "runtimes.json"
    for candidate in ("scratch", "pretrained"):
        chosen = argparse.Namespace(recipe="cifar10", candidate=candidate, model=None, seconds=1.0, results=results)
        bench_runtimes.keep(chosen, {"ratios": candidate})
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert {name: found["ratios"] for name, found in kept.items()} == {
        "cifar10/scratch": "scratch",
        "cifar10/pretrained": "pretrained",
    }
    assert kept["cifar10/scratch"]["command"].endswith("bench_runtimes.py cifar10 scratch --seconds 1")
