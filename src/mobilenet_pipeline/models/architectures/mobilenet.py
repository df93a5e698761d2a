"""MobileNet v1 with variable strides, built block by block (Howard et al. 2017, arXiv:1704.04861)."""

import math
import re
from importlib.resources import files
from pathlib import Path

import keras
import tensorflow as tf

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models.anatomy import FILTERS, STRIDES
from mobilenet_pipeline.models.architecture import NORM_MOMENTUM, Architecture, Features
from mobilenet_pipeline.models.fast_layers import DepthwiseConv2D, FusedBatchNormalization, PointwiseConv2D, ReLU6


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
    # On CPUs, the blocks are faster in bfloat16. The stem is not, and head and loss are in float32.
    whole = "float32" if precision == "pointwise_bfloat16" else precision
    narrow = "mixed_bfloat16" if precision == "pointwise_bfloat16" else precision

    def normalise(x: keras.KerasTensor, name: str, dtype: str = whole) -> keras.KerasTensor:
        if not trained:
            norm = keras.layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"{name}_bn")
            return keras.layers.ReLU(6.0, name=f"{name}_relu")(norm(x))
        # With another number of channels, normalisation in bfloat16 takes four to ten times as long as in float32.
        number = whole if x.shape[-1] % 16 else dtype
        norm = FusedBatchNormalization(
            momentum=NORM_MOMENTUM, synchronized=trained.sync_norm, name=f"{name}_bn", dtype=number
        )
        return ReLU6(name=f"{name}_relu", dtype=number)(norm(x))

    first = keras.layers.Conv2D(
        int(FILTERS[0] * alpha), 3, strides[0], padding="same", use_bias=False, name="conv1", dtype=whole
    )
    x = normalise(first(x), "conv1")
    for block, (filters, stride) in enumerate(zip(FILTERS[1:], strides[1:], strict=True), start=1):
        name, padding = f"conv_dw_{block}", "same" if stride == 1 else "valid"
        if trained:
            depthwise = DepthwiseConv2D(stride, name=name, dtype=narrow)
        else:
            if stride == 2:  # the pretrained weights expect padding at the end only
                x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"conv_pad_{block}")(x)
            depthwise = keras.layers.DepthwiseConv2D(3, stride, padding=padding, use_bias=False, name=name)
        x = normalise(depthwise(x), name, narrow)
        name = f"conv_pw_{block}"
        if trained:
            pointwise = PointwiseConv2D(int(filters * alpha), name=name, dtype=narrow)
        else:
            pointwise = keras.layers.Conv2D(int(filters * alpha), 1, use_bias=False, name=name)
        x = normalise(pointwise(x), name, narrow)
    return x


def folded(model: keras.Model, blocks: int, number: tf.DType) -> Features:
    """Return the first `blocks` blocks of a training model as a function, without training.

    It computes in `number`. Each normalisation is folded into the convolution before it (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2), so that oneDNN computes convolution and ReLU6 in one pass.
    """
    convolutions = [
        layer
        for layer in model.layers
        if hasattr(layer, "kernel") and layer.name != "logits" and block(layer.name) < blocks
    ]

    def compute(pixels: tf.Tensor) -> tf.Tensor:
        x = tf.cast(pixels, number)
        for layer in convolutions:
            norm = model.get_layer(f"{layer.name}_bn")
            scale = norm.gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            offset = tf.cast(norm.beta - norm.moving_mean * scale, number)
            if isinstance(layer, DepthwiseConv2D):
                x = layer.convolve(x, tf.cast(layer.kernel * scale[:, None], number))
            else:
                x = tf.nn.conv2d(x, tf.cast(layer.kernel * scale, number), layer.strides, "SAME")
            x = tf.nn.relu6(tf.nn.bias_add(x, offset))
        return x

    return compute


def block(layer: str) -> int:
    """Return the number of the layer's block: 0 is the stem, 13 the last one."""
    number = re.match(r"conv_(?:pad|dw|pw)_(\d+)", layer)
    return int(number.group(1)) if number else 0


def bundled_weights() -> Path:
    """Return the path of the package's checkpoint.

    The JSON file beside it says how the checkpoint was trained.
    """
    return Path(str(files("mobilenet_pipeline") / "models" / "weights" / "mobilenet_0_25_cifar10.weights.h5"))


def backbone(alpha: float, strides: tuple[int, ...]) -> keras.Model:
    """Return the network without resizing, scaling and head.

    It maps float32 (n, h, w, 3) to (n, h', w', 1024 α).
    """
    image = keras.Input((None, None, 3))
    return keras.Model(image, features(image, alpha, strides))


def names(alpha: float) -> tuple[str, ...]:
    """Return the names of the file with the ImageNet weights: in Keras's downloads, and in newer tools."""
    text = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}[alpha]
    return f"mobilenet_{text}_224_tf_no_top.h5", f"mobilenet_{text}_224_imagenet_no_top.weights.h5"


class MobileNet(Architecture):
    """MobileNet v1 with the candidate's strides, faster training layers, and a checkpoint in the package."""

    def features(self, x: keras.KerasTensor, candidate: Candidate, trained: bool = False) -> keras.KerasTensor:
        """Return the last feature map of `x`; see `features`."""
        return features(x, candidate.alpha, STRIDES[candidate.strides], candidate if trained else None)

    def smallest(self, candidate: Candidate) -> int:
        """Return the product of the strides: the side that ends as one pixel."""
        return math.prod(STRIDES[candidate.strides])

    def split(self, model: keras.Model, candidate: Candidate) -> tuple[Features, keras.Model]:
        """Return the frozen blocks without normalisations, and the model of what follows."""
        if not candidate.frozen or candidate.precision.startswith("mixed"):
            return super().split(model, candidate)
        number = tf.bfloat16 if candidate.precision == "pointwise_bfloat16" else tf.float32
        last = "conv1_relu" if candidate.frozen == 1 else f"conv_pw_{candidate.frozen - 1}_relu"
        rest = keras.Model(model.get_layer(last).output, model.output)
        return folded(model, candidate.frozen, number), rest

    def pretrained(self, candidate: Candidate) -> tuple[keras.Model, str]:
        """Return a model with ImageNet weights or the package's checkpoint. Raises ValueError for another width."""
        if candidate.weights != "bundled":
            return super().pretrained(candidate)
        if candidate.alpha != 0.25:
            raise ValueError(f"the bundled weights are for alpha 0.25, not {candidate.alpha}; set alpha: 0.25")
        source = backbone(candidate.alpha, STRIDES[candidate.strides])
        source.load_weights(bundled_weights())
        return source, f"CIFAR-10 checkpoint {bundled_weights().name}"


ARCHITECTURE = MobileNet(
    application=keras.applications.MobileNet,
    url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/",
    names=names,
    block=block,
)
