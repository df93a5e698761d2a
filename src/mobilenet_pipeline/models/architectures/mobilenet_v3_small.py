"""MobileNet v3 small (Howard et al. 2019, arXiv:1905.02244): squeeze-and-excite and hard-swish."""

import re
from functools import partial

import keras

from mobilenet_pipeline.models.architecture import Architecture


def block(layer: str) -> int:
    """Return the number of the layer's block: 0 is the stem, 12 the last convolution."""
    if layer.startswith("conv_1"):
        return 12
    number = re.match(r"expanded_conv_(\d+)?", layer)
    return int(number.group(1) or 0) + 1 if number else 0


def names(alpha: float) -> tuple[str, ...]:
    """Return the name of Keras's file with the ImageNet weights."""
    return (f"weights_mobilenet_v3_small_224_{alpha}_float_no_top_v2.h5",)


ARCHITECTURE = Architecture(
    application=partial(keras.applications.MobileNetV3Small, include_preprocessing=False),
    url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3/",
    names=names,
    block=block,
)
