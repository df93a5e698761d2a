"""MobileNet v1 with variable strides, built block by block (Howard et al. 2017, arXiv:1704.04861)."""

import math
import os
import re
from importlib.resources import files
from pathlib import Path

import keras

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models.anatomy import FILTERS, STRIDES
from mobilenet_pipeline.models.fast_layers import FusedBatchNormalization, PointwiseConv2D
from mobilenet_pipeline.system import environment

IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
"""Where Keras downloads MobileNet's weights from."""
PIXEL_RANGES = {"unit": (1 / 255, 0.0), "signed": (1 / 127.5, -1.0)}
"""(scale, offset) that map a pixel byte to 0 … 1, or to −1 … 1 as the ImageNet weights expect."""

NORM_MOMENTUM = 0.95
"""Momentum of the moving moments. With Keras's 0.99, they are wrong for hundreds of steps."""


def features(
    x: keras.KerasTensor, alpha: float, strides: tuple[int, ...], trained: Candidate | None = None
) -> keras.KerasTensor:
    """Return the output of stem and 13 depthwise-separable blocks for `x`.

    `x` is (n, h, w, 3) in the range that the weights expect. Layer names and weight shapes are those of
    `keras.applications.MobileNet`. With `trained`, the layers are the faster training layers in that candidate's
    precision. Raises ValueError unless there are 14 strides.
    """
    if len(strides) != len(FILTERS):
        raise ValueError(f"MobileNet has {len(FILTERS)} strides (stem and blocks), not {len(strides)}: {strides}")
    precision = trained.precision if trained else "float32"
    # Pointwise convolutions have most of the multiply-adds. On CPUs, only they and their normalisation are faster in
    # bfloat16.
    whole = "float32" if precision == "pointwise_bfloat16" else precision
    narrow = "mixed_bfloat16" if precision == "pointwise_bfloat16" else precision

    def normalise(x: keras.KerasTensor, name: str, dtype: str = whole) -> keras.KerasTensor:
        if trained:
            norm = FusedBatchNormalization(
                momentum=NORM_MOMENTUM, synchronized=trained.sync_norm, name=f"{name}_bn", dtype=dtype
            )
        else:
            norm = keras.layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"{name}_bn")
        return keras.layers.ReLU(6.0, name=f"{name}_relu", dtype=whole)(norm(x))

    first = keras.layers.Conv2D(
        int(FILTERS[0] * alpha), 3, strides[0], padding="same", use_bias=False, name="conv1", dtype=whole
    )
    x = normalise(first(x), "conv1")
    for block, (filters, stride) in enumerate(zip(FILTERS[1:], strides[1:], strict=True), start=1):
        if stride == 2:  # the pretrained weights expect padding at the end only
            x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"conv_pad_{block}", dtype=whole)(x)
        name, padding = f"conv_dw_{block}", "same" if stride == 1 else "valid"
        depthwise = keras.layers.DepthwiseConv2D(3, stride, padding=padding, use_bias=False, name=name, dtype=whole)
        x = normalise(depthwise(x), name)
        name = f"conv_pw_{block}"
        if trained:
            pointwise = PointwiseConv2D(int(filters * alpha), name=name, dtype=narrow)
        else:
            pointwise = keras.layers.Conv2D(int(filters * alpha), 1, use_bias=False, name=name)
        x = normalise(pointwise(x), name, narrow)
    return x


def build(candidate: Candidate, image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return the candidate's classifier with random weights.

    It maps uint8 (n, *image_shape) to probabilities float32 (n, classes). Scaling and resizing are layers of the model,
    so that training and serving cannot differ.
    """
    image = keras.Input(image_shape, dtype="uint8", name="image")
    x = features(resize(image, candidate, candidate.input_size), candidate.alpha, STRIDES[candidate.strides])
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(_head(x, classes)), name="mobilenet")


def build_trained(candidate: Candidate, classes: int) -> keras.Model:
    """Return the model to train: the output of `resize` to logits (n, classes).

    Its weights have the order of `build`'s. The first `frozen` blocks are not trainable. Raises ValueError if an input
    size is smaller than the product of the strides.
    """
    smallest = math.prod(STRIDES[candidate.strides])
    if min(candidate.input_sizes) < smallest:
        raise ValueError(
            f"input_sizes has {min(candidate.input_sizes)}, which is too small for `strides: {candidate.strides}`; use "
            f"at least {smallest}, or other strides"
        )
    pixels = keras.Input((None, None, 3), name="pixels")
    x = features(pixels, candidate.alpha, STRIDES[candidate.strides], candidate)
    for layer in keras.Model(pixels, x).layers:
        layer.trainable = _block(layer.name) >= candidate.frozen
    return keras.Model(pixels, _head(x, classes))


def _block(layer: str) -> int:
    """Return the number of the block that contains the layer; 0 for the stem."""
    number = re.match(r"conv_(?:pad|dw|pw)_(\d+)", layer)
    return int(number.group(1)) if number else 0


def resize(images: keras.KerasTensor, candidate: Candidate, size: int) -> keras.KerasTensor:
    """Return images uint8 (n, h, h, 3) resized to (n, size, size, 3) and scaled.

    The values are in the range that the candidate's weights expect.
    """
    scale, offset = PIXEL_RANGES[candidate.pixel_range]
    x = keras.ops.cast(images, "float32") * scale + offset
    if size == images.shape[1]:
        return x
    # layers.Resizing would put every later layer into training mode unless the caller passes training=False.
    return keras.ops.image.resize(x, (size, size), interpolation="bilinear")


def _head(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    return keras.layers.Dense(classes, name="logits")(keras.layers.GlobalAveragePooling2D(name="pool")(x))


def load_pretrained(model: keras.Model, candidate: Candidate) -> str:
    """Copy the candidate's initial weights into `model`; return their description.

    Layers are matched by name. Raises ConnectionError if Keras cannot download the weights, ValueError if a file is
    missing or not MobileNet's.
    """
    if candidate.weights == "none":
        return "none"
    source, origin = _bundled(candidate) if candidate.weights == "bundled" else _imagenet(candidate)
    for layer in source.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return origin


def bundled_weights() -> Path:
    """Return the path of the package's checkpoint.

    The JSON file beside it says how the checkpoint was trained.
    """
    return Path(str(files("mobilenet_pipeline") / "models" / "weights" / "mobilenet_0_25_cifar10.weights.h5"))


def _bundled(candidate: Candidate) -> tuple[keras.Model, str]:
    if candidate.alpha != 0.25:
        raise ValueError(f"the bundled weights are for alpha 0.25, not {candidate.alpha}; set alpha: 0.25")
    source = backbone(candidate.alpha, STRIDES[candidate.strides])
    source.load_weights(bundled_weights())
    return source, f"CIFAR-10 checkpoint {bundled_weights().name}"


def backbone(alpha: float, strides: tuple[int, ...]) -> keras.Model:
    """Return the network without resizing, scaling and head.

    It maps float32 (n, h, w, 3) to (n, h', w', 1024 α).
    """
    image = keras.Input((None, None, 3))
    return keras.Model(image, features(image, alpha, strides))


def _imagenet(candidate: Candidate) -> tuple[keras.Model, str]:
    folder = os.environ.get("IMAGENET_WEIGHTS_DIR")
    name, downloads = _weights_names(candidate.alpha)[0], environment.keras_downloads()
    weights = _weights_file(Path(folder), candidate.alpha) if folder else str(downloads / "models" / name)
    try:
        if not folder:  # Keras's own place; KERAS_HOME is ours, see system/environment
            weights = keras.utils.get_file(name, IMAGENET_URL + name, cache_subdir="models", cache_dir=str(downloads))
        model = keras.applications.MobileNet(
            input_shape=(224, 224, 3), alpha=candidate.alpha, include_top=False, weights=weights
        )
    except Exception as error:  # urllib, h5py and Keras raise their own
        if "URL fetch failure" in str(error):
            raise ConnectionError(
                f"Keras could not download the ImageNet weights for alpha {candidate.alpha} ({error}); without a "
                f"network, put {name} into a folder and set IMAGENET_WEIGHTS_DIR to it"
            ) from error
        file = weights if folder else f"Keras's download {weights}"
        raise ValueError(
            f"{file} does not hold MobileNet's ImageNet weights ({error}); delete or replace the file"
        ) from error
    return model, f"ImageNet, alpha {candidate.alpha}, 224 px ({Path(weights).name})"


def _weights_names(alpha: float) -> tuple[str, str]:
    """Return the file's name in Keras's downloads, and its name in newer tools."""
    text = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}[alpha]
    return f"mobilenet_{text}_224_tf_no_top.h5", f"mobilenet_{text}_224_imagenet_no_top.weights.h5"


def _weights_file(folder: Path, alpha: float) -> str:
    names = _weights_names(alpha)
    for name in names:
        if (folder / name).is_file():
            return str(folder / name)
    raise ValueError(
        f"IMAGENET_WEIGHTS_DIR has no {' or '.join(names)} (for alpha {alpha}): put it into {folder}, choose another "
        "alpha, or unset the variable to let Keras download it"
    )
