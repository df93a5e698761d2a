"""Ingest the source as arrays and manifest."""

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data import ingest
from mobilenet_pipeline.workspace.paths import data_folder, home, ingestion_folder


def main(recipe: Recipe) -> None:
    """Write the dataset into `data/RECIPE`, and what is of the source into `reports/RECIPE/ingestion`."""
    dataset = ingest.ingest(recipe, data_folder(recipe), ingestion_folder(recipe), home())
    print(
        f"{dataset['rows']['train']:,} training and {dataset['rows']['test']:,} test images, {dataset['digest'][:12]}"
    )
