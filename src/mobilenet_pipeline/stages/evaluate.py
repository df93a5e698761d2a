"""Served artefact to metrics, predictions and plots."""

from mobilenet_pipeline import evaluation, images, ledger, provenance, split
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, metrics_path, model_folder, report_folder, write_json


def main(recipe: Recipe, name: str) -> None:
    """Write `predictions.npz`, `metrics/RECIPE/CANDIDATE.json` and the plot of confusions."""
    data = images.open_dataset(data_folder(recipe))
    folder = model_folder(recipe, name)
    _, held_out = split.training_rows(data.labels, data.is_test, recipe.split.validation_share, recipe.split.seed)
    ledger.record_read(recipe, name, data.digest, provenance.sha256_of(folder / "model.tflite"))
    document, predictions = evaluation.evaluate(folder / "model.tflite", data, held_out)
    evaluation.save_predictions(folder / "predictions.npz", predictions)
    plot = report_folder(recipe) / "plots" / f"{name}-confusion.csv"
    evaluation.write_confusion(plot, predictions, data.class_names)
    write_json(metrics_path(recipe, name), document)
    test = document["test"]
    print(f"test accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} on {test['rows']:,} images")
