"""Source to arrays and manifest."""

from mobilenet_pipeline import ingest
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder


def main(recipe: Recipe) -> None:
    """Write `data/RECIPE`."""
    dataset = ingest.ingest(recipe, data_folder(recipe))
    print(
        f"{dataset['rows']['train']:,} training and {dataset['rows']['test']:,} test images, {dataset['digest'][:12]}"
    )
