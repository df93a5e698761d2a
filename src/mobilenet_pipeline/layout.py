"""Where a recipe's files lie in a workspace, the current directory by default, and how they are written."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe

HERE = Path(".")


def data_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """The recipe's dataset."""
    return workspace / "data" / recipe.name


def model_folder(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """What training, export and evaluation leave of a candidate."""
    return workspace / "models" / recipe.name / candidate


def metrics_path(recipe: Recipe, candidate: str, workspace: Path = HERE) -> Path:
    """The candidate's metrics document."""
    return workspace / "metrics" / recipe.name / f"{candidate}.json"


def report_folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Validation, verdict, results, and the page that shows them."""
    return workspace / "reports" / recipe.name


def verdict_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """The gate's last verdict."""
    return report_folder(recipe, workspace) / "verdict.json"


def ledger_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """The record of every read of the test images. Not among the reports: cleaning up must not forget it."""
    return workspace / "records" / recipe.name / "test_reads.jsonl"


def ledger_paths(workspace: Path = HERE) -> list[Path]:
    """Those of all recipes: several may have the same images."""
    return sorted((workspace / "records").glob("*/test_reads.jsonl"))


def history_path(recipe: Recipe, workspace: Path = HERE) -> Path:
    """The record of promotions, rollbacks, approvals and rejections."""
    return workspace / "records" / recipe.name / "history.jsonl"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write to in the `with` body: it takes the place of `path` at its end, and is gone if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write `document`, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a record, which is on the disk when this returns.

    Raises OSError where it cannot be written; the record is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        data = f"{line}\n".encode()
        try:
            # A full disk takes the beginning of a line, and refuses the next write.
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise
