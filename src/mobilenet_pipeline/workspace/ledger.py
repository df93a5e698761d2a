"""The record of how the test images were used: every scored model, and every comparison with a champion.

Both records are append-only. What one recipe does counts for all recipes with the same test images, in all workspaces
that share their records.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import files, paths, records
from mobilenet_pipeline.workspace.paths import HERE


def record_read(recipe: Recipe, candidate: str, data_digest: str, sha256: str, workspace: Path = HERE) -> None:
    """Record that this artefact is about to be scored on the data's test images."""
    row = {"at": files.now(), "candidate": candidate, "data_digest": data_digest, "artefact": sha256}
    records.append(paths.ledger_path(recipe, workspace), lambda _: json.dumps(row))


def count_reads(data_digest: str, workspace: Path = HERE) -> int:
    """Return all recipes' number of recorded reads of these test images.

    Raises ValueError, naming the line, if a record is damaged.
    """
    return len(_rows("test_reads", data_digest, workspace))


def last_comparison(data_digest: str, workspace: Path = HERE) -> int:
    """Return the highest number of a comparison on these test images, 0 if there is none.

    Raises ValueError, naming the line, if a record is damaged.
    """
    return max((row["number"] for row in _rows("comparisons", data_digest, workspace)), default=0)


def number_comparisons(
    recipe: Recipe,
    artefacts: Mapping[str, str],
    champion: str,
    data_digest: str,
    workspace: Path = HERE,
    dry: bool = False,
) -> dict[str, int]:
    """Return the number of each candidate's comparison with the champion, and record the new ones unless `dry`.

    `artefacts` has the SHA-256 of each candidate's artefact, `champion` is that of the champion. The same pair keeps
    its number. A new pair gets the next free number, which is at least the number of models that were scored up to the
    candidate: whoever scores many models and compares the best one has chosen it on the test images.

    Raises ValueError, naming the line, if a record is damaged, and OSError if it cannot be written.
    """
    with records.exclusively("numbering", workspace):  # recipes with the same test images may be judged at once
        rows = _rows("comparisons", data_digest, workspace)
        scored = _order_of_reads(data_digest, workspace)
        known = {(row["artefact"], row["champion"]): row["number"] for row in rows}
        last, numbers = max(known.values(), default=0), {}
        for name, artefact in artefacts.items():
            number = known.get((artefact, champion))
            if number is None:
                number = last = max(last + 1, scored.get(artefact, len(scored) + 1))
                known[artefact, champion] = number
                row = {"at": files.now(), "candidate": name, "data_digest": data_digest, "artefact": artefact}
                line = json.dumps({**row, "champion": champion, "number": number})
                if not dry:
                    records.append(paths.comparison_path(recipe, workspace), lambda _, line=line: line)  # type: ignore[misc]
            numbers[name] = number
    return numbers


def _order_of_reads(data_digest: str, workspace: Path) -> dict[str, int]:
    """Return the place of each artefact among all that were scored, counted from 1."""
    rows = sorted(_rows("test_reads", data_digest, workspace), key=lambda row: str(row["at"]))
    return {artefact: place for place, artefact in enumerate(dict.fromkeys(row["artefact"] for row in rows), start=1)}


def _rows(kind: str, data_digest: str, workspace: Path) -> list[dict[str, Any]]:
    rows = []
    for path in records.of_kind(kind, workspace):
        for number, line in enumerate(records.lines(path), start=1):
            try:
                row = json.loads(line)
                if row["data_digest"] == data_digest:
                    rows.append({**row, "artefact": row["artefact"], "at": row["at"]})
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number} is damaged: {line[:80]!r}; restore the file, or correct that line"
                ) from None
    return rows
