"""A CSV or Parquet table with a path and a label for each image, and perhaps its split and its group."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images.found import SPLITS, Content, Found, Problem, Record, split_of

COLUMNS = {
    "path": ("path", "file", "file_name", "filename", "filepath", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "group_id", "patient", "patient_id", "product", "product_id", "subject", "subject_id"),
}
"""Names of the columns; capitals do not matter."""
FLOATS = (float, np.floating)
"""What pandas writes to Parquet for integers of which one is missing."""


def columns(names: list[str]) -> dict[str, str]:
    """Return {"path": …, "label": …, "split": …, "group": …}, the table's names of the columns that it has."""
    lower = {name.strip().lower(): name for name in reversed(names)}
    chosen = {key: [lower[name] for name in accepted if name in lower] for key, accepted in COLUMNS.items()}
    return {key: matches[0] for key, matches in chosen.items() if matches}


def names_images(path: Path) -> bool:
    """Return whether the file is a table with columns of paths and labels."""
    try:
        return {"path", "label"} <= columns([str(name) for name in _cells(path).columns]).keys()
    except IngestError:
        return False


def read(path: Path, inside: bool = False) -> Found:
    """Return the images that the table names; paths are relative to the table's folder.

    With `inside`, files outside that folder are refused, because the table is of an archive. Raises IngestError if the
    file is no such table.
    """
    cells = _cells(path)
    named = columns([str(name) for name in cells.columns])
    if missing := [key for key in ("path", "label") if key not in named]:
        accepted = " and ".join(f"{key} ({', '.join(COLUMNS[key])})" for key in missing)
        raise IngestError(f"{path} has columns {', '.join(map(str, cells.columns))}; it needs one for {accepted}")
    folder, records, problems, paths = path.parent, [], [], []
    texts = {key: _texts(cells[column]) for key, column in named.items()}
    empty = [""] * len(cells)
    rows = zip(texts["path"], texts["label"], texts.get("split", empty), texts.get("group", empty), strict=True)
    for number, (name, label, split, group) in enumerate(rows, start=1):
        file = folder / name
        if "\\" in name and not file.exists():  # a table from Windows
            file = folder / name.replace("\\", "/")
        problem = _problem(name, label, split, file, folder if inside else None)
        if problem:
            problems.append(Problem(name or f"row {number}", *problem))
            continue
        records.append(Record(name, label, split_of(split) or "", group))
        paths.append(file)

    def contents() -> Iterator[Content]:
        yield from paths

    return Found(f"a table, {path.name}", records, problems, contents)


def _problem(name: str, label: str, split: str, file: Path, within: Path | None) -> tuple[str, str] | None:
    if not name or not label:
        return "incomplete", f"the row has no {'path' if not name else 'label'}"
    if split and split_of(split) is None:
        return "split", f"{split!r} is no split; use one of {', '.join(SPLITS)}"
    if within and not file.resolve().is_relative_to(within.resolve()):
        return "outside", "the path leads out of the archive"
    if "\0" in name or not file.is_file():
        return "missing", "the table names a file that does not exist"
    return None


def _cells(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path, dtype_backend="numpy_nullable")  # integers stay so where one is missing
        # Labels such as 007 and NA are text; the separator is found by the csv module.
        return pd.read_csv(path, dtype=str, keep_default_na=False, sep=None, engine="python", encoding="utf-8-sig")
    except (ValueError, OSError, csv.Error) as error:  # pandas's own errors are ValueErrors
        raise IngestError(f"{path} cannot be read as a table ({' '.join(str(error).split())})") from None


def _texts(column: pd.Series) -> list[str]:
    values = [None if pd.isna(value) else value for value in column]
    present = [value for value in values if value is not None]
    if len(present) < len(values) and all(isinstance(value, FLOATS) and value.is_integer() for value in present):
        values = [None if value is None else int(value) for value in values]
    return ["" if value is None else str(value).strip() for value in values]
