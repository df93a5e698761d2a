"""A candidate's classifier: scaling and resizing, the features of its architecture, and a head."""

from importlib import import_module

import keras

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models import architectures
from mobilenet_pipeline.models.architecture import Architecture

PIXEL_RANGES = {"unit": (1 / 255, 0.0), "signed": (1 / 127.5, -1.0)}
"""(scale, offset) that map a pixel byte to 0 … 1, or to −1 … 1 as the ImageNet weights expect."""

DEVIATION = 0.5
"""The standard deviation of an image's pixels with `pixel_range: standard`, near that of photographs in −1 … 1."""

LEAST_DEVIATION = 4.0
"""Its square is added to the variance of an image's pixels, 0 to 255, so that an image of one colour has no noise."""


def architecture_of(candidate: Candidate) -> Architecture:
    """Return the candidate's architecture, from the module of its name."""
    return import_module(f"{architectures.__name__}.{candidate.architecture}").ARCHITECTURE


def build(candidate: Candidate, image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return the candidate's classifier with random weights.

    It maps uint8 (n, *image_shape) to probabilities float32 (n, classes). Scaling and resizing are layers of the model,
    so that training and serving cannot differ.
    """
    image = keras.Input(image_shape, dtype="uint8", name="image")
    x = architecture_of(candidate).features(resize(image, candidate, candidate.input_size), candidate)
    probabilities = keras.layers.Softmax(name="probabilities")(_head(x, classes))
    return keras.Model(image, probabilities, name=candidate.architecture)


def build_trained(candidate: Candidate, classes: int) -> keras.Model:
    """Return the model to train: the output of `resize` to logits (n, classes).

    Its weights have the order of `build`'s. The first `frozen` blocks are not trainable. Raises ValueError if an input
    size is too small for the architecture.
    """
    architecture = architecture_of(candidate)
    smallest = architecture.smallest(candidate)
    if min(candidate.input_sizes) < smallest:
        raise ValueError(
            f"input_sizes has {min(candidate.input_sizes)}, which is too small for `strides: {candidate.strides}`; use "
            f"at least {smallest}, or other strides"
        )
    pixels = keras.Input((None, None, 3), name="pixels")
    x = architecture.features(pixels, candidate, trained=True)
    for layer in keras.Model(pixels, x).layers:
        layer.trainable = architecture.block(layer.name) >= candidate.frozen
    return keras.Model(pixels, _head(x, classes))


def resize(images: keras.KerasTensor, candidate: Candidate, size: int) -> keras.KerasTensor:
    """Return images uint8 (n, h, h, 3) resized to (n, size, size, 3) and scaled.

    The values are in the range that the candidate's weights expect.
    """
    x = keras.ops.cast(images, "float32")
    if candidate.pixel_range == "standard":
        mean, variance = keras.ops.moments(x, axes=(1, 2, 3), keepdims=True)
        x = (x - mean) * (DEVIATION * keras.ops.rsqrt(variance + LEAST_DEVIATION**2))
    else:
        scale, offset = PIXEL_RANGES[candidate.pixel_range]
        x = x * scale + offset
    if size == images.shape[1]:
        return x
    # layers.Resizing would put every later layer into training mode unless the caller passes training=False.
    return keras.ops.image.resize(x, (size, size), interpolation="bilinear")


def _head(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    return keras.layers.Dense(classes, name="logits")(keras.layers.GlobalAveragePooling2D(name="pool")(x))


def load_pretrained(model: keras.Model, candidate: Candidate) -> str:
    """Copy the candidate's initial weights into `model`; return their description.

    Layers are matched by name. Raises ConnectionError if Keras cannot download the weights, ValueError if a file is
    missing or not the architecture's.
    """
    if candidate.weights == "none":
        return "none"
    source, origin = architecture_of(candidate).pretrained(candidate)
    for layer in source.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return origin
