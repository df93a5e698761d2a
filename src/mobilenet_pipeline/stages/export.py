"""Trained model to the artefact that is served."""

from mobilenet_pipeline import export, images
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, model_folder, write_json
from mobilenet_pipeline.stages import run_stage


def main(recipe: Recipe, name: str) -> None:
    """Write `model.tflite` and `export.json`, after comparing the two on every test image."""
    import keras
    import tensorflow as tf

    # On the CPU, as it will be served: a GPU's shorter products would pass for a fault of the artefact.
    tf.config.set_visible_devices([], "GPU")
    folder = model_folder(recipe, name)
    data = images.open_dataset(data_folder(recipe))
    model = keras.models.load_model(folder / "model.keras", compile=False)
    facts = export.export(model, folder / "model.tflite")
    parity = export.check_parity(model, folder / "model.tflite", data.images[data.is_test])
    write_json(folder / "export.json", {**facts, "parity": parity})
    print(f"{facts['bytes']:,} bytes; probabilities within {parity['max_probability_difference']:.1e} of the model's")


if __name__ == "__main__":
    run_stage(main, takes_candidate=True)
