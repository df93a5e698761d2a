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


def metrics_path(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """Return the path of the candidate's metrics document."""
    return workspace / "metrics" / recipe.name / f"{candidate}.json"


def report_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the folder of validation, verdict, results and report page."""
    return workspace / "reports" / recipe.name


def verdict_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the gate's last verdict."""
    return report_folder(recipe, workspace) / "verdict.json"


def ledger_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the record of test-image reads.

    It is outside the reports folder, so that deleting reports does not delete the record.
    """
    return workspace / "records" / recipe.name / "test_reads.jsonl"


def ledger_paths(workspace: Path = HERE) -> list[Path]:
    """Return the paths of all recipes' records; recipes may share test images."""
    return sorted((workspace / "records").glob("*/test_reads.jsonl"))


def history_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the history of promotions, rollbacks and reviews."""
    return workspace / "records" / recipe.name / "history.jsonl"
