"""The paths of a recipe's files in a workspace, by default the current directory."""

from pathlib import Path

from mobilenet_pipeline.config import Recipe

HERE = Path(".")


def data_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the folder of the recipe's dataset."""
    return workspace / "data" / recipe.name


def model_folder(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """Return the folder for the outputs of training, export and evaluation."""
    return workspace / "models" / recipe.name / candidate


def dvc_file(recipe_name: str, workspace: Path = HERE) -> Path:
    """Return the dvc.yaml with the recipe's stages: that of the root for `digits`, for others `recipes/dvc.yaml`."""
    return workspace / ("dvc.yaml" if recipe_name == "digits" else "recipes/dvc.yaml")


def resolved_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the recipe with all values of its base; only recipes of `recipes/dvc.yaml` have this file."""
    return workspace / "models" / recipe.name / "recipe.json"


def metrics_path(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """Return the path of the candidate's metrics document."""
    return workspace / "metrics" / recipe.name / f"{candidate}.json"


def accuracy_path(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """Return the path of the candidate's accuracies, the metrics that DVC shows."""
    return workspace / "metrics" / recipe.name / f"{candidate}-accuracy.json"


def report_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the folder of validation, verdict, results and report page."""
    return workspace / "reports" / recipe.name


def near_duplicates_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the test images that have a near twin among the training images."""
    return report_folder(recipe, workspace) / "near_duplicates.json"


def ingestion_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the folder of the images' files and of the problems that ingestion found."""
    return report_folder(recipe, workspace) / "ingestion"


def verdict_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the gate's last verdict."""
    return report_folder(recipe, workspace) / "verdict.json"


def records_folder(workspace: Path = HERE) -> Path:
    """Return the folder of all recipes' records.

    It is outside the reports folder, so that deleting reports does not delete the records. DVC copies the workspace to
    `.dvc/tmp/exps` for `dvc exp run --temp` and `--queue`, and deletes the copy afterwards: the records of such an
    experiment are those of the workspace that it was copied from.
    """
    return home(workspace) / "records"


def home(workspace: Path = HERE) -> Path:
    """Return the workspace that outlives DVC's temporary copies; `workspace` itself if it is no such copy."""
    here = workspace.resolve()
    for folder in here.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return workspace


def ledger_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the record of test-image reads."""
    return records_folder(workspace) / recipe.name / "test_reads.jsonl"


def comparison_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the record of comparisons on the test images."""
    return records_folder(workspace) / recipe.name / "comparisons.jsonl"


def history_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the history of promotions, rollbacks and reviews."""
    return records_folder(workspace) / recipe.name / "history.jsonl"


def registry_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the record of the MLflow registries that the recipe's versions are in."""
    return records_folder(workspace) / recipe.name / "registry.jsonl"


def journal_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the decisions that MLflow has not got yet."""
    return records_folder(workspace) / recipe.name / "journal.jsonl"
