"""Source to arrays and manifest."""

from mobilenet_pipeline import ingest
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.layout import data_folder
from mobilenet_pipeline.stages import run_stage


def main(recipe: Recipe) -> None:
    """Write `data/RECIPE`."""
    dataset = ingest.ingest(recipe, data_folder(recipe))
    print(
        f"{dataset['rows']['train']:,} training and {dataset['rows']['test']:,} test images, {dataset['digest'][:12]}"
    )


if __name__ == "__main__":
    run_stage(main, takes_candidate=False)
