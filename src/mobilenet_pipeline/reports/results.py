"""The results and costs of a run as one JSON document: `reports/RECIPE/results.json`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.reports import costs
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import paths, provenance
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json, write_json
from mobilenet_pipeline.workspace.paths import HERE


def results_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the recipe's results."""
    return paths.report_folder(recipe, workspace) / "results.json"


def write_results(
    recipe: Recipe, verdict: Verdict, stages: Sequence[Mapping[str, Any]], workspace: Path = HERE
) -> Path:
    """Write the results of the evaluations in `workspace`, and return the path.

    `verdict.leaves` are the current aliases, `stages` this run's rows (see `merge_stages`). Raises WorkspaceError,
    naming the file, if a file is missing or damaged. Damaged results are replaced.
    """
    path = results_path(recipe, workspace)
    noted = costs.known(recipe, workspace)
    try:
        earlier = {row["name"]: row for row in read_json(path).get("stages", [])}
    except WorkspaceError:
        earlier = {}
    files = {
        name: (
            read_json(paths.metrics_path(recipe, name, workspace)),
            read_json(paths.model_folder(recipe, artefact.candidate, workspace) / "training.json"),
        )
        for name, artefact in recipe.artefacts.items()
    }
    commit, dirty = provenance.git_commit(workspace)
    document = {
        "recipe": recipe.name,
        "candidates": {name: summarise(metrics, training) for name, (metrics, training) in files.items()},
        "data_digest": verdict.data_digest,
        "commit": commit,
        "uncommitted_changes": dirty,
        "command": f"mobilenet-pipeline run --recipe {recipe.name}",
        "machine": machine.describe_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "champion": verdict.leaves.champion,
        "verdict_reason": verdict.reason,
        "stages": merge_stages(earlier | noted, [{**row, **noted.get(row["name"], {})} for row in stages]),
    }
    write_json(path, document)
    return path


def put_champion(recipe: Recipe, champion: str | None, workspace: Path = HERE) -> None:
    """Write the present champion into the recipe's results.

    The other values stay those of the run. Raises WorkspaceError if there are no results.
    """
    path = results_path(recipe, workspace)
    write_json(path, read_json(path) | {"champion": champion})


def reported(recipe: Recipe, workspace: Path = HERE) -> bool:
    """Return whether results and report of the last verdict exist, and the results are whole."""
    try:
        read_json(results_path(recipe, workspace))
    except WorkspaceError:
        return False
    return (paths.report_folder(recipe, workspace) / "index.html").exists()


def summarise(metrics: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, float | int | str | None]:
    """Return a candidate's results.

    Accuracies are shares, losses are cross-entropies per image, counts are for one image. `corrupted_accuracy` is the
    mean over the corruptions, None if there are none.
    """
    test, validation, corruptions = metrics["test"], metrics["validation"], metrics.get("corruptions")
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "corrupted_accuracy": round(fmean(corruptions.values()), 5) if corruptions else None,
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


def merge_stages(earlier: Mapping[str, Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per stage, with `costs.MEASURES` of the run that executed it.

    A row of `now` is {name, outcome, changed} and measures. A stage that was not executed now has the measures in
    `earlier`, by its name, or None.
    """
    rows = []
    for row in now:
        measured = row if row["outcome"] == "ran" else earlier.get(row["name"], {})
        rows.append({**row, **{key: measured.get(key) for key in costs.MEASURES}})
    return rows
