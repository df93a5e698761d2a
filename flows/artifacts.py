"""The artifacts of a run on Prefect's pages: progress, figures, candidates, verdict, and the time of each stage."""

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.reports import costs

EPOCH = re.compile(r"\bepoch (\d+)/(\d+)")


def epoch_of(line: str) -> tuple[int, int] | None:
    """Return (finished epoch, number of epochs) from a line of a training, or None."""
    match = EPOCH.search(line)
    return (int(match[1]), int(match[2])) if match else None


def follow_epochs(stage: str) -> Callable[[str], None]:
    """Return a function that updates a progress bar on Prefect's page.

    It takes the stage's lines. The first epoch creates the bar. If the server does not answer, only the bar is missing:
    the training continues.
    """
    bar = None

    def follow(line: str) -> None:
        nonlocal bar
        epoch = epoch_of(line)
        if epoch is None:
            return
        share = 100 * epoch[0] / epoch[1]
        try:
            if bar is None:
                bar = create_progress_artifact(share, key(stage, "progress"), f"Epochs of {stage}")
            else:
                update_progress_artifact(bar, share)
        except Exception as error:
            get_run_logger().warning("cannot update the progress bar of %s: %s", stage, error)

    return follow


def publish(
    recipe: Recipe,
    results: Mapping[str, Any],
    verdict: Verdict,
    page: Path,
) -> None:
    """Show candidates, verdict, figures and stages on Prefect's page of the run."""
    create_table_artifact(candidate_rows(results), key(recipe.name, "candidates"), f"Candidates of {recipe.name}")
    create_markdown_artifact(describe_verdict(verdict), key(recipe.name, "verdict"), f"Verdict on {recipe.name}")
    text = "Cost per stage, of the run that executed it last"
    create_table_artifact(costs.table(results["stages"]), key(recipe.name, "stages"), text)
    figures = f"The complete report: `{page.resolve()}`\n\n" + "\n\n".join(
        f"![{name}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"
        for name, png in draw(recipe, page.parents[2]).items()
    )
    create_markdown_artifact(figures, key(recipe.name, "figures"), f"Learning curves and confusions of {recipe.name}")


def candidate_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table with a row per candidate, as formatted text."""
    return [
        {
            "candidate": name,
            "validation accuracy": f"{row['val_accuracy']:.2%}",
            "validation loss": f"{row['val_loss']:.4f}",
            "test accuracy": f"{row['test_accuracy']:.2%}",
            "test loss": f"{row['test_loss']:.4f}",
            "CPU minutes": f"{row['cpu_minutes']:.1f}",
            "wall minutes": f"{row['wall_minutes']:.1f}",
            "parameters": f"{row['parameters']:,}",
            "multiply-adds": f"{row['multiply_adds']:,}",
        }
        for name, row in results["candidates"].items()
    ]


def describe_verdict(verdict: Verdict) -> str:
    """Return the verdict as Markdown: the decision, its checks, and the champion."""
    checks = [f"- {'✓' if check.passed else '✗'} {check.sentence}" for check in verdict.checks]
    champion = verdict.leaves.champion
    served = f"Version {champion} of {verdict.registered_model} is champion." if champion else "There is no champion."
    warning = [verdict.warning, ""] if verdict.warning else []
    return "\n".join([f"**{verdict.reason}**", "", *checks, "", *warning, served])


def draw(recipe: Recipe, workspace: Path) -> dict[str, bytes]:
    """Return learning curves and confusion matrices of the candidates, as PNG."""
    from mobilenet_pipeline.reports import figures
    from mobilenet_pipeline.reports import page as report

    contents = report.gather(recipe, workspace)
    matrices = {name: files["metrics"]["confusion_matrix"] for name, files in contents.candidates.items()}
    return {
        "learning curves": figures.learning_curves(contents.histories),
        "confusion matrices": figures.confusion_matrices(matrices, recipe.data.class_names),
    }


def key(*words: str) -> str:
    """Return the key of an artifact, in lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
