"""How often models were scored on the test images: a line a read, never rewritten."""

import json
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline import layout
from mobilenet_pipeline.config import Recipe


def record_read(recipe: Recipe, candidate: str, data_digest: str, sha256: str, workspace: Path = Path(".")) -> None:
    """Note that the artefact with this SHA-256 is about to be scored on the test images of the data."""
    row = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "candidate": candidate,
        "data_digest": data_digest,
        "artefact": sha256,
    }
    layout.append_line(layout.ledger_path(recipe, workspace), json.dumps(row))


def count_reads(data_digest: str, workspace: Path = Path(".")) -> int:
    """How many reads of these data's test images are on record, for all recipes.

    Raises ValueError naming a line that is damaged.
    """
    return sum(_reads_of(data_digest, path) for path in layout.ledger_paths(workspace))


def _reads_of(data_digest: str, path: Path) -> int:
    found = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found += json.loads(line)["data_digest"] == data_digest
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number} is damaged: {line[:80]!r}; restore the file, or mend that line"
            ) from None
    return found
