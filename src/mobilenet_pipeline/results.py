"""What a run reached and what it cost, as one JSON document: `reports/RECIPE/results.json`."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobilenet_pipeline import provenance
from mobilenet_pipeline.config import CANDIDATES, Recipe


def results_path(recipe: Recipe, workspace: Path = Path(".")) -> Path:
    """Where the recipe's results lie."""
    return workspace / "reports" / recipe.name / "results.json"


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
            provenance.read_json(workspace / "metrics" / recipe.name / f"{name}.json"),
            provenance.read_json(workspace / "models" / recipe.name / name / "training.json"),
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
        "machine": describe_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "champion": verdict["leaves"]["champion"],
        "verdict_reason": verdict["reason"],
        "stages": merge_stages(earlier, stages),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


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


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, operating system and Python of this machine."""
    import psutil

    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
