"""Copies of MLflow's database, and their return to this or another folder.

A store is a "file" (SQLite), a "database" (PostgreSQL), or a "server". Of a server, the artefacts of this pipeline's
versions are copied, with their logged models; its database has to be backed up there.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.removal import local_path
from mobilenet_pipeline.registry.store import StoreError, default_database, use_store
from mobilenet_pipeline.registry.versions import ARTEFACT, COMPLETE, SERVED, entries_of, is_ours
from mobilenet_pipeline.workspace import records
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
_MARKED = "alembic_version"
"""The table whose comment says which dump was loaded last."""


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
    return sqlite_file(uri) if uri else default_database()


def sqlite_file(uri: str) -> Path:
    """Return the path in the SQLAlchemy URL of an SQLite file."""
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
        copy_to(folder / "mlflow.dump")
    lost = _save_artefacts(folder)
    if kind() != "server":
        return lost
    return [
        *lost,
        f"{shown(mlflow.get_tracking_uri())} is a server: this backup has the runs of registered versions, not the "
        "server's database; back that up there, with pg_dump or SQLite's .backup",
    ]


def _save_artefacts(folder: Path) -> list[str]:
    """Download what this pipeline's versions have elsewhere than in the workspace's folder, by run and logged model."""
    client, lost = MlflowClient(), []
    for entry in filter(is_ours, (entry for name in _model_names(client) for entry in entries_of(name))):
        version = f"version {entry.version} of {entry.name}"
        try:
            places = _places(client, client.get_run(str(entry.run_id)))
            files = {name: _download(place, folder / name) for name, place in places.items()}
        except OSError:
            raise
        except Exception as error:  # every client library raises its own
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise StoreError(
                    f"the artefacts of {version} cannot be read ({' '.join(str(error).split())[:300]}); "
                    "`mobilenet-pipeline doctor` says more"
                ) from error
            lost.append(f"{version} has no run any more, so it has no artefacts here")
            continue
        if entry.tags.get(COMPLETE) and f"{SERVED}/{ARTEFACT}" not in files[f"runs/{entry.run_id}"]:
            lost.append(
                f"MLflow has lost the model of {version}, so it is not in this backup; `mobilenet-pipeline doctor "
                "--repair` restores it if a Bento or the workspace has a copy. Then repeat the backup"
            )
    return lost


def _model_names(client: MlflowClient) -> Iterator[str]:
    """Yield the names of all registered models; the client gives 100 at a time."""
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from (model.name for model in page)
        token = page.token
        if not token:
            return


def _places(client: MlflowClient, run: Run) -> dict[str, str]:
    """Return the places of a run's artefacts and of its logged models, by their folder in a backup."""
    places = {f"runs/{run.info.run_id}": str(run.info.artifact_uri)}
    for output in run.outputs.model_outputs if run.outputs else []:
        with suppress(MlflowException):  # somebody has deleted it
            places[f"models/{output.model_id}"] = str(client.get_logged_model(output.model_id).artifact_location)
    return places


def _download(place: str, target: Path) -> set[str]:
    """Return the names of the files at a place; those that are not in the workspace's folder are copied to `target`."""
    repository, folder = _repository(place), local_path(place)
    names = {*_names(repository)}
    if names and not (folder and folder.resolve().is_relative_to(artefacts().resolve())):
        target.mkdir(parents=True, exist_ok=True)
        repository.download_artifacts("", str(target))
    return names


def _repository(place: str) -> ArtifactRepository:
    return get_artifact_repository(place, mlflow.get_tracking_uri())


def _names(repository: ArtifactRepository, folder: str | None = None) -> Iterator[str]:
    """Yield the names of all files in a folder of an artefact store and below it."""
    for entry in repository.list_artifacts(folder):
        if not entry.is_dir:
            yield str(entry.path)
        elif entry.path != folder:
            yield from _names(repository, str(entry.path))


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


def relocate(former: Path, present: Path, path: Path) -> None:
    """Rewrite the places of artefacts from the folder `former` to `present`, in a copied SQLite file.

    MLflow keeps absolute places. They are URIs, and plain paths in databases that MLflow made by itself.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in _relocation(former, present):
            connection.execute(statement)


def _relocation(former: Path, present: Path) -> Iterator[str]:
    """Yield the SQL statements that rewrite the places of artefacts."""
    if former == present:
        return
    for table, column in LOCATIONS:
        for old, new in ((former.as_uri(), present.as_uri()), (str(former), str(present))):
            yield (
                f"UPDATE {table} SET {column} = {_quoted(new)} || substr({column}, {len(old) + 1}) "
                f"WHERE {column} = {_quoted(old)} OR substr({column}, 1, {len(old) + 1}) = {_quoted(old + '/')};"
            )


def _quoted(text: str) -> str:
    """Return the text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def load_database(dump: Path, former: Path, token: str) -> None:
    """Replace the PostgreSQL database by a dump whose artefacts were in the folder `former`, all or nothing.

    `is_loaded(token)` says afterwards that this was done. Raises StoreError if it fails; the database is as it was.
    """
    script = dump.with_suffix(".sql")
    options = ["--clean", "--if-exists", "--no-owner", "--no-acl"]
    _run("pg_restore", *options, f"--file={script}", str(dump))
    with script.open("a", encoding="utf-8") as file:
        file.write("RESET search_path;\n")  # the dump has set it to none
        file.writelines(f"{statement}\n" for statement in _relocation(former, artefacts().resolve()))
        file.write(f"COMMENT ON TABLE {_MARKED} IS {_quoted(token)};\n")
    _postgres("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", f"--file={script}")


def is_loaded(token: str) -> bool:
    """Return whether `load_database` with this token has reached its end."""
    query = f"SELECT obj_description(to_regclass({_quoted(_MARKED)}), 'pg_class')"
    return _postgres("psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command={query}").strip() == token


def put_back(folder: Path) -> list[str]:
    """Upload the files of runs and logged models in `folder` that the store has lost.

    Returns a sentence for each run or model that cannot have them.
    """
    use_store()
    client, lost = MlflowClient(), []
    for copy in sorted([*folder.glob("runs/*"), *folder.glob("models/*")]):
        try:
            if copy.parent.name == "runs":
                place = client.get_run(copy.name).info.artifact_uri
            else:
                place = client.get_logged_model(copy.name).artifact_location
            _upload(copy, str(place))
        except Exception as error:  # every client library raises its own
            owner = f"{copy.parent.name.removesuffix('s')} {copy.name}"
            lost.append(f"the artefacts of {owner} are not back: {' '.join(str(error).split())[:200]}")
    return lost


def _upload(folder: Path, place: str) -> None:
    """Upload the files that are not at the place."""
    repository = _repository(place)
    stored = {*_names(repository)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.as_posix() not in stored:
            repository.log_artifact(str(path), name.parent.as_posix() if name.parent.name else None)


def copy_to(path: Path) -> None:
    """Copy the PostgreSQL database to `path`, without the shared records: other workspaces go on with these."""
    others = f"--exclude-table=*.{records.TABLE}"
    _postgres("pg_dump", "--format=custom", "--no-owner", "--no-acl", others, f"--file={path}")


def _postgres(program: str, *words: str) -> str:
    """Run a client program of PostgreSQL for MLflow's database and return its output; the password is no argument."""
    from sqlalchemy import make_url

    url = make_url(os.environ["MLFLOW_TRACKING_URI"])
    address = {"--host": url.host or url.query.get("host"), "--port": url.port, "--username": url.username}
    options = [f"{name}={value}" for name, value in address.items() if value]
    return _run(program, "--no-password", *options, f"--dbname={url.database}", *words, password=url.password)


def _run(program: str, *words: str, password: object = None) -> str:
    place = shown(os.environ["MLFLOW_TRACKING_URI"])
    if not shutil.which(program):
        raise StoreError(f"{program} is not installed, and MLflow's store is PostgreSQL; install postgresql-client")
    variables = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    done = subprocess.run([program, *words], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        message = " ".join(done.stderr.split())[-300:]
        raise StoreError(f"{program} failed for {place}: {message or f'exit code {done.returncode}'}")
    return done.stdout
