"""What a run shows at its end: the candidates, the outcome with its reasons, and the next commands."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.release.judging import read_verdict
from mobilenet_pipeline.reports import results
from mobilenet_pipeline.workspace import files, paths


def print_summary(recipe: Recipe, sentence: str, console: Console, workspace: Path = Path(".")) -> None:
    """Print the candidates' results, the outcome with its reasons, and next commands."""
    reports = paths.report_folder(recipe, workspace)
    path, champion = results.results_path(recipe, workspace), None
    if path.exists():
        document = files.read_json(path)
        champion = document["champion"]
        console.print(candidate_table(document))
    verdict = read_verdict(recipe, workspace) if (reports / "verdict.json").exists() else None
    console.print(f"\n[bold]{escape(sentence)}[/]", highlight=False, soft_wrap=True)
    for line in reasons(verdict, sentence) if verdict else []:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print()
    for purpose, command in next_commands(recipe, reports, champion is not None).items():
        console.print(f"  {purpose:<16} {command}", highlight=False, soft_wrap=True)


def candidate_table(document: Mapping[str, Any]) -> Table:
    """Return a table with a row per candidate, for 80 columns."""
    table = Table(title=f"Candidates of {document['recipe']}: accuracy and loss")
    table.add_column("candidate")
    for column in ("validation", "loss", "test", "loss", "CPU min", "parameters"):
        table.add_column(column, justify="right")
    for name, row in document["candidates"].items():
        table.add_row(
            name,
            f"{row['val_accuracy']:.2%}",
            f"{row['val_loss']:.4f}",
            f"[bold]{row['test_accuracy']:.2%}[/]",
            f"{row['test_loss']:.4f}",
            f"{row['cpu_minutes']:.1f}",
            f"{row['parameters']:,}",
        )
    return table


def reasons(verdict: Verdict, sentence: str) -> list[str]:
    """Return a line for every check of the verdict, and its warning.

    The verdict's reason comes first if the sentence lacks it.
    """
    opening = [] if verdict.reason in sentence else [f"The last verdict: {verdict.reason}"]
    checks = (f"{'✓' if check.passed else '✗'} {check.sentence}" for check in verdict.checks)
    return [*opening, *checks, *([verdict.warning] if verdict.warning else [])]


def next_commands(recipe: Recipe, reports: Path, has_champion: bool) -> dict[str, str]:
    """Return {purpose: command} for the next steps."""
    program = "mobilenet-pipeline"
    if shutil.which(program) is None:  # the virtual environment is not activated
        program = os.path.relpath(Path(sys.executable).parent / program)
    variable = "" if recipe.name == "digits" else f" RECIPE={recipe.name}"
    serving = {
        "API": f"make serve{variable}, then curl -F image=@photo.png http://127.0.0.1:3000/predict",
        "one photo": f"{program} predict photo.png --recipe {recipe.name}",
    }
    return {
        "report": str((reports / "index.html").resolve()),
        **(serving if has_champion else {}),
        "MLflow, Prefect": "make ui, then http://127.0.0.1:5000 and http://127.0.0.1:4200",
        "every night": f'{program} schedule --recipe {recipe.name} --cron "0 3 * * *"',
    }
