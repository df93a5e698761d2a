"""Evaluate the artefact: metrics, predictions and plots."""

from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.evaluation.evaluate import accuracy_beside_twins, evaluate, write_confusion
from mobilenet_pipeline.evaluation.predictions import save_predictions
from mobilenet_pipeline.workspace import ledger
from mobilenet_pipeline.workspace.files import read_json, sha256_of, write_json
from mobilenet_pipeline.workspace.paths import (
    accuracy_path,
    data_folder,
    metrics_path,
    model_folder,
    near_duplicates_path,
    report_folder,
)


def main(recipe: Recipe, name: str) -> None:
    """Write predictions.npz, metrics/RECIPE/CANDIDATE.json, its accuracies for DVC, and the confusion plot."""
    data = open_dataset(data_folder(recipe))
    folder = model_folder(recipe, name)
    _, validation = split_rows(data, recipe.split)
    ledger.record_read(recipe, name, data.digest, sha256_of(folder / "model.tflite"))
    if address := setting.address():
        from mobilenet_pipeline.cluster import evaluation as cluster

        document, predictions = cluster.evaluate(address, recipe, name, folder / "model.tflite", data, print)
    else:
        document, predictions = evaluate(folder / "model.tflite", data, validation, recipe.gate.coverage)
    pairs = read_json(near_duplicates_path(recipe))["pairs"]
    document["near_duplicates"] = accuracy_beside_twins(predictions, [row for row, *_ in pairs])
    save_predictions(folder / "predictions.npz", predictions)
    plot = report_folder(recipe) / "plots" / f"{name}-confusion.csv"
    write_confusion(plot, predictions, data.class_names)
    write_json(metrics_path(recipe, name), document)
    test = document["test"]
    accuracies = {"val": document["validation"]["accuracy"], "test": test["accuracy"]}
    # With the candidate's name in the key, `dvc exp show` needs no file name in its columns. Both tables fit into 120.
    write_json(accuracy_path(recipe, name), {name: {key: round(value, 5) for key, value in accuracies.items()}})
    print(f"test accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} on {test['rows']:,} images")
