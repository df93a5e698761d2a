"""Workspaces that take seconds to fill: filled once a session, copied for every other test."""

import copy
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bentos import Packaging

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Where MLflow's database says in which folder something lies."""


class Kept:
    """Filled workspaces with the Bentos that belong to them, in folders under `root`, by what fills them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bentos: dict[str, Packaging] = {}

    def fill(self, name: str, workspace: Path, packaging: Packaging, work: Callable[[], None]) -> None:
        """Do the work called `name` in the workspace; where it has been done in another, take over what it left."""
        folder = self.root / name
        if name in self.bentos:
            copy_workspace(folder, workspace)
            vars(packaging).update(copy.deepcopy(vars(self.bentos[name])))
            return
        work()
        copy_workspace(workspace, folder)
        self.bentos[name] = copy.deepcopy(packaging)


def copy_workspace(source: Path, target: Path) -> None:
    """Copy files and MLflow's database, where the copied runs then lie in the copy."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    with closing(sqlite3.connect(source / "mlflow.db")) as old, closing(sqlite3.connect(target / "mlflow.db")) as new:
        old.backup(new)  # not by the file: a client may have the target open
        for table, column in LOCATIONS:
            new.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(source), str(target)))
        new.commit()
