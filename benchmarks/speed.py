"""The figures of docs/results/speed.json, each beside that of an earlier commit, and the trees of both commits."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files

RESULTS = Path("docs/results/speed.json")
BASE = "1c511d416396cbacfd4f750568f71c9537a53221"
"""The commit to compare with."""


@dataclass(frozen=True)
class Figure:
    """A measured figure, and that of the earlier commit; `bar` is the goal for the value or the ratio, in words."""

    name: str
    value: float
    base: float
    bar: str = ""

    def row(self, command: str, commit: str) -> dict[str, object]:
        """Return the figure with its ratio and its origin."""
        origin = {"command": command, "commit": commit, "base_commit": BASE}
        when = {"machine": machine.describe_machine()["cpu"], "date": datetime.now(UTC).date().isoformat()}
        values = {"value": round(self.value, 4), "base": round(self.base, 4), "ratio": round(self.value / self.base, 3)}
        return asdict(self) | values | origin | when


def keep(figures: Sequence[Figure], command: str, commit: str) -> None:
    """Write the figures into `RESULTS`; those of other names stay unchanged."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    fresh = [figure.row(command, commit) for figure in figures]
    names = {row["name"] for row in fresh}
    files.write_json(RESULTS, [row for row in rows if row["name"] not in names] + fresh)


@contextmanager
def trees() -> Iterator[dict[str, Path]]:
    """Yield clones of the repository at the earlier commit, `base`, and at the one that is checked out, `now`."""
    with tempfile.TemporaryDirectory() as folder:
        clones = {"base": Path(folder) / "base", "now": Path(folder) / "now"}
        for clone in clones.values():
            subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
        # On a branch, as in a workspace: some tests push it.
        subprocess.run(["git", "checkout", "--quiet", "-B", "earlier", BASE], cwd=clones["base"], check=True)
        yield clones


@contextmanager
def told() -> Iterator[None]:
    """End the program with a sentence if a value is wrong or a command fails in the `with` body."""
    try:
        yield
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def environment(tree: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a process that uses the code of `tree` and this environment's packages."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(tree)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **(more or {}),
    }
