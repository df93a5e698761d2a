"""Initial weights that follow from the seed alone."""

import random

import keras


def draw(model: keras.Model, seed: int) -> None:
    """Draw the kernels of all layers again, from `seed`.

    Keras seeds each initializer from Python's global random numbers, which any thread of the process may draw from.
    They are those that Keras draws after `set_random_seed` in a process with one thread.
    """
    numbers = random.Random(seed)
    for layer in model.layers:
        for name in ("kernel_initializer", "depthwise_initializer"):
            initializer: keras.Initializer | None = getattr(layer, name, None)
            if initializer and "seed" in (config := initializer.get_config()):
                seeded = type(initializer).from_config({**config, "seed": numbers.randint(1, 10**9)})
                layer.kernel.assign(seeded(layer.kernel.shape, layer.kernel.dtype))
