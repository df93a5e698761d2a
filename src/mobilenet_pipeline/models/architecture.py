"""What the training needs to know of an architecture, and how it gets a network of `keras.applications`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from mobilenet_pipeline.config import ARCHITECTURES, REDUCTION, Candidate
from mobilenet_pipeline.system import environment

NORM_MOMENTUM = 0.95
"""Momentum of the moving moments. With Keras's 0.99 or 0.999, they are wrong for hundreds of steps."""


Features = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Architecture:
    """A network of `keras.applications`; a subclass may build its own.

    `application` is Keras's function without preprocessing: it takes `input_tensor` or `input_shape`, `alpha`,
    `include_top` and `weights`. Keras downloads the ImageNet weights of a width multiplier from the folder `url`, as
    the first of the file's `names`; a file that the user provides may have any of them. `block` is the number of the
    block that contains a layer with weights, by the layer's name: 0 is the stem.
    """

    application: Callable[..., keras.Model]
    url: str
    names: Callable[[float], tuple[str, ...]]
    block: Callable[[str], int]

    def features(self, x: keras.KerasTensor, candidate: Candidate, trained: bool = False) -> keras.KerasTensor:
        """Return the last feature map (n, h', w', c) of `x`, (n, h, w, 3) in the candidate's pixel range.

        With `trained`, the layers compute in the candidate's precision. The weights are the same and in the same order.
        """
        with _precision(candidate.precision if trained else "float32"):
            network = self.application(input_tensor=x, alpha=candidate.alpha, include_top=False, weights=None)
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = NORM_MOMENTUM
                layer.synchronized = trained and candidate.sync_norm
        return network.output

    def split(self, model: keras.Model, candidate: Candidate) -> tuple[Features, keras.Model]:
        """Return the frozen blocks of a model to train, as a faster function, and the model of what follows.

        The function maps the model's input to that of the second model. Here it does nothing, and the second model is
        the whole one.
        """
        return lambda pixels: pixels, model

    def smallest(self, candidate: Candidate) -> int:
        """Return the smallest side of an input, in pixels."""
        return REDUCTION

    def pretrained(self, candidate: Candidate) -> tuple[keras.Model, str]:
        """Return a model with the layers that the candidate's `weights` are for, and the weights' description.

        Raises ConnectionError if Keras cannot download the weights, ValueError if a file is missing or has others.
        """
        title, alpha, file = ARCHITECTURES[candidate.architecture].title, candidate.alpha, self.file(candidate)
        try:
            model = self.application(input_shape=(224, 224, 3), alpha=alpha, include_top=False, weights=str(file))
        except Exception as error:  # h5py and Keras raise their own
            raise ValueError(
                f"{file} does not hold {title}'s ImageNet weights ({error}); delete or replace the file"
            ) from error
        return model, f"ImageNet, alpha {alpha}, 224 px ({file.name})"

    def file(self, candidate: Candidate) -> Path:
        """Return the file with the ImageNet weights: that of IMAGENET_WEIGHTS_DIR, or else Keras's download.

        Raises ConnectionError if Keras cannot download it, ValueError if the folder lacks it.
        """
        names, alpha = self.names(candidate.alpha), candidate.alpha
        if folder := os.environ.get("IMAGENET_WEIGHTS_DIR"):
            for name in names:
                if (Path(folder) / name).is_file():
                    return Path(folder) / name
            raise ValueError(
                f"IMAGENET_WEIGHTS_DIR has no {' or '.join(names)} (for alpha {alpha}): put it into {folder}, choose "
                "another alpha, or unset the variable to let Keras download it"
            )
        try:  # Keras's own place; KERAS_HOME is ours, see system/environment
            cache = {"cache_subdir": "models", "cache_dir": str(environment.keras_downloads())}
            return Path(keras.utils.get_file(names[0], self.url + names[0], **cache))
        except Exception as error:  # urllib raises its own
            raise ConnectionError(
                f"Keras could not download the ImageNet weights for alpha {alpha} ({error}); without a network, "
                f"put {names[0]} into a folder and set IMAGENET_WEIGHTS_DIR to it"
            ) from error


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Let Keras make layers of this precision in the `with` body."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
