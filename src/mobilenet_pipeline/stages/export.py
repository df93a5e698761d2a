"""Trained model to the artefact that is served."""

import numpy as np

from mobilenet_pipeline import export, images, split
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, model_folder, write_json

CALIBRATION = 500
"""Training images that the ranges of an int8 artefact's activations are taken from."""


def main(recipe: Recipe, name: str) -> None:
    """Write `model.tflite` and `export.json`, after comparing artefact and model on every test image.

    An int8 artefact answers a little differently; by how much is kept, and whether that will do is up to the gate.
    """
    import keras
    import tensorflow as tf

    # On the CPU, as it will be served: a GPU's shorter products would pass for a fault of the artefact.
    tf.config.set_visible_devices([], "GPU")
    folder = model_folder(recipe, name)
    data = images.open_dataset(data_folder(recipe))
    model = keras.models.load_model(folder / "model.keras", compile=False)
    kept, _ = split.training_rows(data.labels, data.is_test, recipe.split.validation_share, recipe.split.seed)
    facts = export.export(
        model, folder / "model.tflite", recipe.serving.precision, np.asarray(data.images[kept[:CALIBRATION]])
    )
    compare = export.check_parity if recipe.serving.precision == "float32" else export.compare
    parity = compare(model, folder / "model.tflite", data.images[data.is_test])
    write_json(folder / "export.json", {**facts, "parity": parity})
    print(f"{facts['bytes']:,} bytes; probabilities within {parity['max_probability_difference']:.1e} of the model's")
