"""MLflow's store, an SQLite file or a server: select it, migrate it, and check it."""

import fcntl
import logging
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.paths import home

_PROBE_SECONDS = 5
_PROBE = "probe"
"""The file that a check of the artefact store writes and deletes."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CLIENTS = {
    "s3": "boto3",
    "gs": "google-cloud-storage",
    "wasbs": "azure-storage-blob",
    "abfss": "azure-storage-file-datalake azure-identity",
    "sftp": "pysftp",
    "hdfs": "pyarrow",
}
"""The packages that MLflow needs for artefact stores, by URI scheme."""


class StoreError(OSError):
    """MLflow cannot be used. The message has the cause and the remedy."""


class StoreAwayError(StoreError, ConnectionError):
    """MLflow does not answer. A later try may succeed."""


def use_store() -> str:
    """Point MLflow at its store, check that it answers, and return the tracking URI.

    The store is MLFLOW_TRACKING_URI, or else `mlflow.db` and `mlruns/` in the workspace. An SQLite store is
    created or migrated if necessary, by one process at a time. Raises StoreError within seconds, naming the URI and the
    remedy.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It would log the traceback of every error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    setting = os.environ.get("MLFLOW_TRACKING_URI")
    path = default_database()
    uri = setting or database_uri(path)
    mlflow.set_tracking_uri(uri)
    if not setting:
        # MLflow sets the variable, which would bind this process and its children to this directory.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif not setting:
        _open_database(uri, path)
    elif uri.startswith("sqlite:///") and "?" not in uri:
        _open_database(uri, Path(uri.removeprefix("sqlite:///")))
    else:
        _reach(uri)
    return uri


def default_database() -> Path:
    """Return the SQLite file that is MLflow's store without a setting."""
    return home(Path.cwd()) / "mlflow.db"


def database_uri(path: Path) -> str:
    """Return the URI of an SQLite file at an absolute path.

    SQLAlchemy reads a path as it is, up to a `?`. A path with a `?` becomes a URI of SQLite itself, which is decoded.
    Its slashes are encoded, too, because MLflow creates the folder of what it takes for the path.
    """
    if "?" not in str(path):
        return f"sqlite:///{path}"
    return f"sqlite:///file:{quote(str(path), safe='')}?uri=true"


def artefact_location(name: str) -> str | None:
    """Return where the artefacts of a new experiment belong: `mlruns/NAME` here, None if a server decides.

    MLflow's own default is a plain path, which MLflow later decodes as if it were a URI.
    """
    databases = ("sqlite:", "postgresql", "mysql", "mssql")
    return (home(Path.cwd()) / "mlruns" / name).as_uri() if mlflow.get_tracking_uri().startswith(databases) else None


def experiment(recipe: Recipe) -> str:
    """Return the id of the recipe's experiment; create or restore it if necessary."""
    client = MlflowClient()
    if client.get_experiment_by_name(recipe.name) is None:
        with suppress(MlflowException):  # another training may create it at the same time
            return str(client.create_experiment(recipe.name, artefact_location(recipe.name)))
    entry = client.get_experiment_by_name(recipe.name)
    if entry is None:
        raise StoreError(
            f"MLflow at {mlflow.get_tracking_uri()} cannot create the experiment {recipe.name!r}; read its log"
        )
    if entry.lifecycle_stage == "deleted":
        client.restore_experiment(entry.experiment_id)
    return str(entry.experiment_id)


def check_registry() -> None:
    """Raise StoreError unless the registry that MLFLOW_REGISTRY_URI names, if it names another one, answers."""
    uri = mlflow.get_registry_uri()
    if uri == mlflow.get_tracking_uri():
        return
    try:
        with _few_retries():
            MlflowClient().search_registered_models(max_results=1)
    except Exception as error:  # each kind of registry raises its own
        cause = " ".join(str(error).split())[:300]
        raise StoreError(
            f"MLflow's registry {shown(uri)} (MLFLOW_REGISTRY_URI) does not answer ({cause}); correct "
            "MLFLOW_REGISTRY_URI, or unset it to keep registry and runs in one store"
        ) from None


def check_artefacts(location: str) -> None:
    """Write a tiny file into an experiment's artefact store and delete it.

    Raises StoreError with the cause and the remedy, such as the package to install, if the file cannot be written.
    """
    packages = _CLIENTS.get(urlsplit(location).scheme)
    try:
        with _few_retries(), tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / _PROBE).touch()
            repository = get_artifact_repository(location)
            repository.log_artifact(str(Path(scratch) / _PROBE))
            with suppress(Exception):  # a store that forbids deletions is no hindrance
                repository.delete_artifacts(_PROBE)
    except ImportError as error:
        remedy = f"`pip install {packages or error.name}`, or start the MLflow server with --serve-artifacts"
        raise StoreError(
            f"MLflow needs a package for its artefact store {shown(location)} ({error}); {remedy}"
        ) from None
    except Exception as error:  # every client library raises its own
        cause = " ".join(str(error).split())[:300]
        raise StoreError(
            f"MLflow cannot write to its artefact store {shown(location)} ({cause}); check the address, the "
            "credentials of this environment, and the MLflow server's log"
        ) from None


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let MLflow's client give up within seconds in the `with` body; it would retry a server's errors for minutes."""
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PROBE_SECONDS)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _probe(uri: str) -> None:
    """Raise StoreError unless the server answers one request.

    MLflow's own client retries for minutes, which only a running training needs.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    address = shown(uri)
    remedy = "start that server, or correct MLFLOW_TRACKING_URI"
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "GET",
            max_retries=0,
            timeout=_PROBE_SECONDS,
            raise_on_status=False,
            params={"max_results": 1},
        )
    except Exception:  # MLflow raises different errors for refused connections, unknown hosts, timeouts and TLS
        raise StoreAwayError(f"no MLflow server answers at {address} (MLFLOW_TRACKING_URI); {remedy}") from None
    if answer.status_code >= 500:
        raise StoreAwayError(
            f"the MLflow server at {address} (MLFLOW_TRACKING_URI) answers {answer.status_code}; start its database, "
            "or read its log"
        )
    if answer.status_code == 403:
        remedy = "name this host in the server's --allowed-hosts, with and without its port, or check your permissions"
    if answer.status_code != 200:
        raise StoreError(
            f"{address} (MLFLOW_TRACKING_URI) answers {answer.status_code}, unlike an MLflow server; {remedy}"
        )


def server_version() -> str | None:
    """Return the version of MLflow's server, None if it does not say."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials = get_default_host_creds(mlflow.get_tracking_uri())
    answer = http_request(credentials, "/version", "GET", max_retries=0, timeout=_PROBE_SECONDS, raise_on_status=False)
    return str(answer.text.strip()) if answer.status_code == 200 else None


def _reach(uri: str) -> None:
    """Raise StoreAwayError unless a database server listens at its address; SQLAlchemy would retry for minutes."""
    place = urlsplit(uri)
    port = place.port or _PORTS.get(place.scheme.partition("+")[0])
    if not place.hostname or not port:
        return
    try:
        socket.create_connection((place.hostname, port), _PROBE_SECONDS).close()
    except OSError as error:
        raise StoreAwayError(
            f"MLflow's database does not answer at {shown(uri)} (MLFLOW_TRACKING_URI): {error}; start it, or correct "
            "MLFLOW_TRACKING_URI"
        ) from None


def _open_database(uri: str, path: Path) -> None:
    """Create or migrate the database, unless it is ready.

    A lock excludes the other processes of the pipeline.
    """
    if _is_ready(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees the lock when the process ends
        try:
            if _revision(path) not in (None, _newest_revision()):
                _migrate(uri, path)
            MlflowClient(uri).search_experiments(max_results=1)  # creates the tables of a new database
        except Exception as error:  # MLflow, SQLAlchemy, Alembic and SQLite raise their own
            copy = Path(f"{path}.before-migration")
            backup = f"; a copy from before the migration is {copy}" if copy.exists() else ""
            cause = " ".join(str(error).split())[:200]
            raise StoreError(
                f"MLflow {mlflow.__version__} cannot use {path} ({cause}); if it is from a newer MLflow, install "
                f"that, else move the file away to start afresh{backup}"
            ) from error


@cache
def _newest_revision() -> str:
    """Return the database revision that the installed MLflow needs.

    The result is cached, because reading the migration scripts takes 0.1 s.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _revision(path: Path) -> str | None:
    """Return the revision of the database, None if it has no tables."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _is_ready(path: Path) -> bool:
    """Return whether the installed MLflow can use the database as it is.

    MLflow creates the first experiment last, after all tables.
    """
    try:
        if _revision(path) != _newest_revision():
            return False
        with closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT 1 FROM experiments").fetchone() is not None
    except sqlite3.Error:  # reported when the database is opened
        return False


def _migrate(uri: str, path: Path) -> None:
    """Migrate an older MLflow's database; a copy of the old one remains."""
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(f"{path}.before-migration")) as new:
        old.backup(new)
    _upgrade_db(create_sqlalchemy_engine(uri))
