"""Manifest to validation report; a failed expectation ends the pipeline here."""

import json

import pandas as pd

from mobilenet_pipeline import validation
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder, report_folder, write_json


def main(recipe: Recipe) -> None:
    """Write `reports/RECIPE/validation.json` and its Data Docs, then raise ValueError if an expectation failed."""
    folder, reports = data_folder(recipe), report_folder(recipe)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    digest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["digest"]
    document = validation.validate(manifest, recipe, digest, reports / "data_docs")
    write_json(reports / "validation.json", document)
    if not document["success"]:
        raise ValueError("\n".join(["the data did not pass validation:", *validation.failures(document)]))
    print(f"{len(document['expectations'])} expectations met by {document['rows']:,} images")
