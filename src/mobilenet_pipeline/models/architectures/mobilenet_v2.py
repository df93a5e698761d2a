"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381): inverted residuals with linear bottlenecks."""

import re

import keras

from mobilenet_pipeline.models.architecture import Architecture


def block(layer: str) -> int:
    """Return the number of the layer's block: 0 is the stem, 18 the last convolution."""
    if layer.startswith("Conv_1"):
        return 18
    if layer.startswith("expanded_conv"):
        return 1
    number = re.match(r"block_(\d+)_", layer)
    return int(number.group(1)) + 1 if number else 0


def names(alpha: float) -> tuple[str, ...]:
    """Return the name of Keras's file with the ImageNet weights."""
    return (f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5",)


ARCHITECTURE = Architecture(
    application=keras.applications.MobileNetV2,
    url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/",
    names=names,
    block=block,
)
