"""Copies of MLflow's database, and their return to this or another folder.

A store is a "file" (SQLite), a "database" (PostgreSQL), or a "server". Of a server, the artefacts of this pipeline's
versions are copied; its database has to be backed up there.
"""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.removal import local_path
from mobilenet_pipeline.registry.store import StoreError, database_uri, default_database, use_store
from mobilenet_pipeline.registry.versions import entries_of, is_ours
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.paths import home

Kind = Literal["file", "database", "server"]
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""The columns of MLflow's database that hold the place of artefacts."""


def kind() -> Kind:
    """Return the kind of store that MLflow's settings name. Raises StoreError for a database that cannot be copied."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:"
    if uri.startswith(("http://", "https://")):
        return "server"
    if uri.startswith("postgresql"):
        return "database"
    if uri.startswith("sqlite:"):
        return "file"
    raise StoreError(
        f"{shown(uri)} (MLFLOW_TRACKING_URI) is neither SQLite nor PostgreSQL nor a server; use its own tools"
    )


def database() -> Path:
    """Return the SQLite file of a store that is one."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_database()
    path, _, query = uri.removeprefix("sqlite:///").partition("?")
    return Path(unquote(path.removeprefix("file:")) if "uri=true" in query else path)


def artefacts() -> Path:
    """Return the folder that holds the artefacts of a store without a server."""
    return home(Path.cwd()) / "mlruns"


def artefact_location(recipe: Recipe) -> str | None:
    """Return the place of the recipe's artefacts, None before the first run."""
    use_store()
    experiment = MlflowClient().get_experiment_by_name(recipe.name)
    return str(experiment.artifact_location) if experiment else None


def save(folder: Path) -> list[str]:
    """Copy the store's database into `folder`, and what is not on this disk; return a sentence for what is left out.

    Raises StoreError with the cause.
    """
    use_store()
    folder.mkdir(parents=True, exist_ok=True)
    if kind() == "file":
        with closing(sqlite3.connect(database())) as source, closing(sqlite3.connect(folder / "mlflow.db")) as copy:
            source.backup(copy)
    elif kind() == "database":
        _postgres("pg_dump", "--format=custom", "--no-owner", "--no-acl", f"--file={folder / 'mlflow.dump'}")
    lost = _save_runs(folder / "runs")
    if kind() != "server":
        return lost
    return [
        *lost,
        f"{shown(mlflow.get_tracking_uri())} is a server: this backup has the runs of registered versions, not the "
        "server's database; back that up there, with pg_dump or SQLite's .backup",
    ]


def _save_runs(folder: Path) -> list[str]:
    """Download the artefacts of this pipeline's versions that are elsewhere than in the workspace's folder."""
    client, lost = MlflowClient(), []
    for entry in (entry for model in client.search_registered_models() for entry in entries_of(model.name)):
        if not is_ours(entry):
            continue
        try:
            place = client.get_run(str(entry.run_id)).info.artifact_uri
            folder_here = local_path(place)
            if folder_here is None or not folder_here.resolve().is_relative_to(artefacts().resolve()):
                target = folder / str(entry.run_id)
                target.mkdir(parents=True, exist_ok=True)
                client.download_artifacts(str(entry.run_id), "", str(target))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise StoreError(
                    f"the artefacts of version {entry.version} of {entry.name} cannot be read ({error.message}); "
                    "`mobilenet-pipeline doctor` says more"
                ) from None
            lost.append(f"version {entry.version} of {entry.name} has no run any more, so it has no artefacts here")
    return lost


def is_empty() -> bool:
    """Return whether the store has no registered model and no run; a missing SQLite file is not created."""
    if kind() == "file":
        return _is_empty_file(database())
    use_store()
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return not client.search_registered_models(max_results=1) and not client.search_runs(experiments, max_results=1)


def _is_empty_file(path: Path) -> bool:
    """Return whether the SQLite file has no runs and models; MLflow itself would keep the file open."""
    if not path.exists():
        return True
    try:
        with closing(sqlite3.connect(path)) as connection:
            rows = [connection.execute(f"SELECT 1 FROM {table}").fetchone() for table in ("registered_models", "runs")]
    except sqlite3.OperationalError:  # no tables yet
        return not path.stat().st_size
    except sqlite3.DatabaseError:  # damaged, so there may be something in it
        return False
    return not any(rows)


def check(path: Path) -> None:
    """Raise StoreError unless the SQLite file is whole."""
    try:
        with closing(sqlite3.connect(path)) as copy:
            answer = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        answer = str(error)
    if answer != "ok":
        raise StoreError(f"{path.name} is damaged ({answer})")


def relocate(former: Path, present: Path, path: Path | None = None) -> None:
    """Rewrite the places of artefacts from the folder `former` to `present`, in a copied SQLite file or in PostgreSQL.

    MLflow keeps absolute places. They are URIs, and plain paths in databases that MLflow made by itself.
    """
    from sqlalchemy import create_engine, text

    if former == present:
        return
    engine = create_engine(database_uri(path) if path else os.environ["MLFLOW_TRACKING_URI"])
    with engine.begin() as connection:
        for table, column in LOCATIONS:
            for old, new in ((former.as_uri(), present.as_uri()), (str(former), str(present))):
                connection.execute(
                    text(
                        f"UPDATE {table} SET {column} = :new || substr({column}, :rest) "
                        f"WHERE {column} = :old OR substr({column}, 1, :rest) = :inside"
                    ),
                    {"new": new, "rest": len(old) + 1, "old": old, "inside": f"{old}/"},
                )
    engine.dispose()


def load_database(dump: Path) -> None:
    """Replace the PostgreSQL database by a dump. Raises StoreError if that fails; the database is then as it was."""
    _postgres("pg_restore", "--clean", "--if-exists", "--no-owner", "--no-acl", "--single-transaction", str(dump))


def put_back_runs(folders: Iterable[Path]) -> list[str]:
    """Upload the artefacts that the store has lost; return a sentence for each run that cannot have them.

    Each folder is called by its run.
    """
    use_store()
    client, lost = MlflowClient(), []
    for folder in folders:
        try:
            client.get_run(folder.name)
            if not client.list_artifacts(folder.name):
                client.log_artifacts(folder.name, str(folder))
        except (MlflowException, OSError) as error:
            lost.append(f"the artefacts of run {folder.name} are not back: {' '.join(str(error).split())[:200]}")
    return lost


def copy_to(path: Path) -> None:
    """Copy the PostgreSQL database to `path`, before it is replaced."""
    _postgres("pg_dump", "--format=custom", "--no-owner", "--no-acl", f"--file={path}")


def _postgres(program: str, *words: str) -> None:
    """Run a client program of PostgreSQL for MLflow's database; the password is in no argument."""
    from sqlalchemy import make_url

    url = make_url(os.environ["MLFLOW_TRACKING_URI"])
    if not shutil.which(program):
        raise StoreError(f"{program} is not installed, and MLflow's store is PostgreSQL; install postgresql-client")
    address = {"--host": url.host or url.query.get("host"), "--port": url.port, "--username": url.username}
    options = [f"{name}={value}" for name, value in address.items() if value]
    variables = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            [program, "--no-password", *options, f"--dbname={url.database}", *words],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
        )
        errors.seek(0)
        message = " ".join(errors.read().split())[-300:]
    if done.returncode:
        raise StoreError(f"{program} failed for {shown(str(url))}: {message or f'exit code {done.returncode}'}")
