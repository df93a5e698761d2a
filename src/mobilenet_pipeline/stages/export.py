"""Export a trained model as the served artefact."""

import numpy as np

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.evaluation import export
from mobilenet_pipeline.workspace.files import write_json
from mobilenet_pipeline.workspace.paths import data_folder, model_folder

CALIBRATION = 500
"""Training images that calibrate the activation ranges of an int8 artefact."""


def main(recipe: Recipe, name: str) -> None:
    """Write `model.tflite` and `export.json`.

    Artefact and model are compared on every test image. The answers of an int8 artefact differ slightly from the
    model's: export.json has the differences, and the gate judges the artefact. Raises ParityError if a float32 artefact
    differs from its model.
    """
    folder, artefact = model_folder(recipe, name), recipe.artefacts[name]
    data = open_dataset(data_folder(recipe))
    model = export.load_model(model_folder(recipe, artefact.candidate) / "model.keras")
    folder.mkdir(parents=True, exist_ok=True)
    training, _ = split_rows(data, recipe.split)
    calibration = np.asarray(data.images[training[:CALIBRATION]])
    facts = export.export(model, folder / "model.tflite", artefact.precision, calibration, data.class_names)
    compare = export.check_parity if artefact.precision == "float32" else export.compare
    parity = compare(model, folder / "model.tflite", data.images, np.flatnonzero(data.is_test))
    write_json(folder / "export.json", {**facts, "parity": parity})
    print(f"{facts['bytes']:,} bytes; probabilities within {parity['max_probability_difference']:.1e} of the model's")
