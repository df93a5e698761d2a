"""Write what a pull request changes, as a comment in Markdown: metrics, validation, and the gate's dry run.

`make stages` and `make pull-request` run it; .github/workflows/pull-request.yml posts the result.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.registry import away
from mobilenet_pipeline.release import judging
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.system import environment, failures
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json, write_text

USE = (
    "The gate's dry run registers nothing, promotes nothing and counts no comparison. Its figures are those that "
    "`evaluate` has\nmeasured and recorded: every model that is scored here lowers the level at which a later one is "
    "promoted. Do not choose\namong pull requests by these figures."
)


def comment(recipe: Recipe, base: str | None) -> str:
    """Return the comment on this workspace; `base` is the Git revision to compare with."""
    base = base or last_promotion(recipe) or "HEAD"
    parts = [
        f"## `{recipe.name}`",
        f"### Metrics, compared with `{base}`\n\n{metrics(recipe, base)}",
        f"### Validation\n\n{validation(recipe)}",
        f"### Gate, dry run\n\n{gate(recipe)}",
        USE,
    ]
    return "\n\n".join(parts) + "\n"


def last_promotion(recipe: Recipe) -> str | None:
    """Return the newest tag of a promotion, which has the dvc.lock of the champion; None if there is none."""
    words = ["git", "tag", "--list", "promoted/*", "--sort=-creatordate"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    # Git's own pattern would also match the tags of a model whose name begins with that of this one.
    own = re.compile(rf"promoted/{re.escape(recipe.registered_model)}-\d+-[0-9a-f]{{8}}")
    return next(filter(own.fullmatch, done.stdout.split()), None)


def metrics(recipe: Recipe, base: str) -> str:
    """Return DVC's table of the accuracies here and at `base`, or DVC's message."""
    files = [str(paths.accuracy_path(recipe, candidate)) for candidate in recipe.artefacts]
    command = [sys.executable, "-P", "-m", "dvc", "metrics", "diff", base, "--md", "--all", "--targets", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    message = next(reversed(done.stderr.strip().splitlines()), "no message").removeprefix("ERROR: ")
    return done.stdout.strip() or f"There is no table: {message}"


def validation(recipe: Recipe) -> str:
    """Return how many expectations are met, and those that are not."""
    try:
        report = read_json(paths.report_folder(recipe) / "validation.json")
    except WorkspaceError as error:
        return f"Not validated: {error}"
    failed = [row["sentence"] for row in report["expectations"] if not row["success"]]
    met = len(report["expectations"]) - len(failed)
    lines = [f"{met} of {len(report['expectations'])} expectations are met by {report['rows']:,} images."]
    return "\n".join([*lines, *(f"- ✗ {sentence}" for sentence in failed)])


def gate(recipe: Recipe) -> str:
    """Return the gate's decision on the workspace's candidates with its checks, or why there is none."""
    try:
        with away.answering():
            decision = judging.preview(recipe)
    except (ValueError, OSError) as error:
        return f"No verdict: {error}"
    checks = "\n".join(f"- {'✓' if check.passed else '✗'} {check.sentence}" for check in decision.checks)
    warning = f"\n\n{decision.warning}" if decision.warning else ""
    return f"{decision.reason}{warning}\n\n<details><summary>All checks</summary>\n\n{checks}\n\n</details>"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages, or write the comment to reports/RECIPE/pull-request.md and print it.

    An expected error, such as that of a failed stage, ends the program with its sentence.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a section of params.yaml")
    parser.add_argument("--stages", action="store_true", help="run the stages that are out of date, and no more")
    parser.add_argument("--base", help="a Git revision with a dvc.lock (default: the last promotion's tag, else HEAD)")
    options = parser.parse_args(arguments)
    try:
        environment.prepare()
        recipe = load_recipe(options.recipe)
        run_stages(recipe) if options.stages else write_comment(recipe, options.base or None)
    except Exception as error:
        sentence = failures.explain(error, runner.EXPECTED)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def run_stages(recipe: Recipe) -> None:
    """Bring the stages up to date. Raises StageFailed at the first that fails."""
    for name in runner.stage_names(recipe):
        print(f"{name} {runner.run_stage(name, print).outcome}", flush=True)


def write_comment(recipe: Recipe, base: str | None) -> None:
    """Write the comment to reports/RECIPE/pull-request.md, and print it."""
    text = comment(recipe, base)
    write_text(Path(paths.report_folder(recipe)) / "pull-request.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
