"""Write the results of benchmarks with their origin."""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files, provenance


def keep(path: Path, name: str, figures: Mapping[str, Any], command: str, packages: Iterable[str]) -> None:
    """Write the figures called `name` and their origin into the JSON file `path`.

    The figures of other names stay unchanged.
    """
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document[name] = {
        **figures,
        "command": command,
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }
    files.write_json(path, document)
