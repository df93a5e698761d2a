"""The record of reads of the test images: one line per scored model, append-only."""

import json
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import files, paths


def record_read(recipe: Recipe, candidate: str, data_digest: str, sha256: str, workspace: Path = Path(".")) -> None:
    """Record that this artefact is about to be scored on the data's test images."""
    row = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "candidate": candidate,
        "data_digest": data_digest,
        "artefact": sha256,
    }
    files.append_line(paths.ledger_path(recipe, workspace), json.dumps(row))


def count_reads(data_digest: str, workspace: Path = Path(".")) -> int:
    """Return all recipes' number of recorded reads of these test images.

    Raises ValueError, naming the line, if a record is damaged.
    """
    return sum(_reads_of(data_digest, path) for path in paths.ledger_paths(workspace))


def _reads_of(data_digest: str, path: Path) -> int:
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            count += json.loads(line)["data_digest"] == data_digest
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number} is damaged: {line[:80]!r}; restore the file, or correct that line"
            ) from None
    return count
