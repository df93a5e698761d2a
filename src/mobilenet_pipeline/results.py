"""What a run reached and what it cost, as one JSON document: `reports/RECIPE/results.json`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobilenet_pipeline import layout, provenance
from mobilenet_pipeline.config import CANDIDATES, Recipe


def results_path(recipe: Recipe, workspace: Path = Path(".")) -> Path:
    """Where the recipe's results lie."""
    return layout.report_folder(recipe, workspace) / "results.json"


def write_results(
    recipe: Recipe, verdict: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], workspace: Path = Path(".")
) -> Path:
    """Write the results of the evaluations that lie in `workspace`, and return the path.

    `verdict` is verdict.json and `stages` this run's rows (see `merge_stages`). Raises ProvenanceError naming a file
    that is missing or damaged.
    """
    path = results_path(recipe, workspace)
    earlier = provenance.read_json(path).get("stages", []) if path.exists() else []
    files = {
        name: (
            provenance.read_json(layout.metrics_path(recipe, name, workspace)),
            provenance.read_json(layout.model_folder(recipe, name, workspace) / "training.json"),
        )
        for name in CANDIDATES
    }
    commit, dirty = provenance.git_commit(workspace)
    document = {
        "recipe": recipe.name,
        "candidates": {name: summarise(metrics, training) for name, (metrics, training) in files.items()},
        "data_digest": verdict["data_digest"],
        "commit": commit,
        "uncommitted_changes": dirty,
        "command": f"mobilenet-pipeline run --recipe {recipe.name}",
        "machine": provenance.describe_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "champion": verdict["leaves"]["champion"],
        "verdict_reason": verdict["reason"],
        "stages": merge_stages(earlier, stages),
    }
    layout.write_json(path, document)
    return path


def put_champion(recipe: Recipe, champion: str | None, workspace: Path = Path(".")) -> None:
    """Say in the recipe's results which version is champion now; all else stays what it was when the run measured it.

    Raises ProvenanceError where there are no results.
    """
    path = results_path(recipe, workspace)
    layout.write_json(path, provenance.read_json(path) | {"champion": champion})


def summarise(metrics: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, float | int | str | None]:
    """A candidate's figures. Accuracies are shares, losses cross-entropies per image, counts for one image."""
    test, validation = metrics["test"], metrics["validation"]
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "val_accuracy": validation["accuracy"],
        "val_loss": validation["loss"],
        "cpu_minutes": round(training["cpu_minutes"], 3),
        "wall_minutes": round(training["wall_minutes"], 3),
        "parameters": training["parameters"],
        "multiply_adds": training["multiply_adds"],
        "weights": training["weights"],
        "commit": training.get("git_commit"),
        "trained_at": training.get("trained_at"),
        "machine": training.get("machine"),
    }


def merge_stages(earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows {name, wall_seconds, cpu_seconds, outcome, changed}, the seconds those of the run that did the work.

    A stage that did not run now keeps the seconds of when it did; where these are not known they are None.
    """
    before = {row["name"]: row for row in earlier}
    rows = []
    for row in now:
        kept = {} if row["outcome"] == "ran" else dict.fromkeys(("wall_seconds", "cpu_seconds"))
        if kept and row["name"] in before:
            kept = {key: before[row["name"]][key] for key in kept}
        rows.append({**row, **kept})
    return rows
