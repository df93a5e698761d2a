"""Validate the dataset. A failed expectation stops the pipeline, near duplicates do not."""

from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe, did_you_mean, recipe_names
from mobilenet_pipeline.data import near_duplicates, validation
from mobilenet_pipeline.data.dataset import Dataset, open_dataset
from mobilenet_pipeline.workspace.files import read_json, write_json
from mobilenet_pipeline.workspace.paths import data_folder, ingestion_folder, near_duplicates_path, report_folder

ADDITIONS = Path("gx/expectations")
"""The suites that people add: RECIPE.json, in the JSON of Great Expectations."""


def main(recipe: Recipe) -> None:
    """Write `validation.json`, near duplicates, Data Docs and a project of Great Expectations into `reports/RECIPE`.

    Raises ValueError if an expectation failed; the files are written first.
    """
    folder, reports = data_folder(recipe), report_folder(recipe)
    digest = read_json(folder / "dataset.json")["digest"]
    problems = read_json(ingestion_folder(recipe) / "problems.json")
    document = validation.validate(folder / "manifest.parquet", recipe, digest, reports, additions(recipe), problems)
    write_json(reports / "validation.json", document)
    if not document["success"]:
        remedy = (
            f"correct the images at their source or, if these are right, recipes.{recipe.name}.data in params.yaml, "
            "which says what is expected"
        )
        raise ValueError("\n".join(["the data did not pass validation:", *validation.failures(document), remedy]))
    twins = near_duplicates_of(open_dataset(folder))
    write_json(near_duplicates_path(recipe), twins)
    write_json(reports / "validation.json", document | {"information": [twins["sentence"]]})
    print(f"{document['rows']:,} images meet all {len(document['expectations'])} expectations; {twins['sentence']}")


def near_duplicates_of(data: Dataset) -> dict[str, Any]:
    """Return the near twins of the test images, JSON-ready.

    `pairs` are [test row, training row, bits, correlation], and `sentence` is for people.
    """
    twins = near_duplicates.find(data.images, data.is_test)
    rows, count = int(data.is_test.sum()), len(twins.test)
    share, other = count / max(rows, 1), int((data.labels[twins.test] != data.labels[twins.train]).sum())
    columns = (twins.test, twins.train, twins.distance, twins.correlation)
    return {
        "data_digest": data.digest,
        "distance": near_duplicates.DISTANCE,
        "correlation": near_duplicates.CORRELATION,
        "sentence": f"{count:,} of {rows:,} test images ({share:.1%}) have a near twin among the training images, "
        f"{other:,} of them with another label",
        "pairs": [list(pair) for pair in zip(*(column.tolist() for column in columns), strict=True)],
    }


def additions(recipe: Recipe) -> Path | None:
    """Return the recipe's suite in `ADDITIONS`, if there is one. Raises ValueError for a suite of no recipe."""
    names = recipe_names()
    for path in sorted(ADDITIONS.glob("*.json")):
        if path.stem not in names:
            raise ValueError(f"{path} belongs to no recipe{did_you_mean(path.stem, names)}; rename or remove it")
    path = ADDITIONS / f"{recipe.name}.json"
    return path if path.exists() else None
