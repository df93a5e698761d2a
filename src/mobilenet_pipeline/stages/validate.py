"""Validate the dataset. A failed expectation stops the pipeline."""

from pathlib import Path

from mobilenet_pipeline.config import Recipe, did_you_mean, recipe_names
from mobilenet_pipeline.data import validation
from mobilenet_pipeline.workspace.files import read_json, write_json
from mobilenet_pipeline.workspace.paths import data_folder, report_folder

ADDITIONS = Path("gx/expectations")
"""The suites that people add: RECIPE.json, in the JSON of Great Expectations."""


def main(recipe: Recipe) -> None:
    """Write `validation.json`, Data Docs and a project of Great Expectations into `reports/RECIPE`.

    Raises ValueError if an expectation failed; the files are written first.
    """
    folder, reports = data_folder(recipe), report_folder(recipe)
    digest = read_json(folder / "dataset.json")["digest"]
    document = validation.validate(folder / "manifest.parquet", recipe, digest, reports, additions(recipe))
    write_json(reports / "validation.json", document)
    if not document["success"]:
        remedy = (
            f"correct the images at their source or, if these are right, recipes.{recipe.name}.data in params.yaml, "
            "which says what is expected"
        )
        raise ValueError("\n".join(["the data did not pass validation:", *validation.failures(document), remedy]))
    print(f"{document['rows']:,} images meet all {len(document['expectations'])} expectations")


def additions(recipe: Recipe) -> Path | None:
    """Return the recipe's suite in `ADDITIONS`, if there is one. Raises ValueError for a suite of no recipe."""
    names = recipe_names()
    for path in sorted(ADDITIONS.glob("*.json")):
        if path.stem not in names:
            raise ValueError(f"{path} belongs to no recipe{did_you_mean(path.stem, names)}; rename or remove it")
    path = ADDITIONS / f"{recipe.name}.json"
    return path if path.exists() else None
