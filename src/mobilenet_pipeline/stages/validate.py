"""Validate the dataset. A failed expectation stops the pipeline."""

import pandas as pd

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data import validation
from mobilenet_pipeline.workspace.files import read_json, write_json
from mobilenet_pipeline.workspace.paths import data_folder, report_folder


def main(recipe: Recipe) -> None:
    """Write `reports/RECIPE/validation.json` and its Data Docs.

    Raises ValueError if an expectation failed; the files are written first.
    """
    folder, reports = data_folder(recipe), report_folder(recipe)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    digest = read_json(folder / "dataset.json")["digest"]
    document = validation.validate(manifest, recipe, digest, reports / "data_docs")
    write_json(reports / "validation.json", document)
    if not document["success"]:
        raise ValueError("\n".join(["the data did not pass validation:", *validation.failures(document)]))
    print(f"{document['rows']:,} images meet all {len(document['expectations'])} expectations")
