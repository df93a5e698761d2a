"""Complete a recipe with the values of its base."""

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace.files import write_json
from mobilenet_pipeline.workspace.paths import resolved_path


def main(recipe: Recipe) -> None:
    """Write `models/RECIPE/recipe.json`, whose values are the params of all later stages."""
    write_json(resolved_path(recipe), recipe.model_dump(mode="json"))
    print(f"every setting of {recipe.name} is in {resolved_path(recipe)}")
