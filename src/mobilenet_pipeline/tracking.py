"""MLflow runs: one per training, under one per flow, in SQLite beside the workspace or on a server."""

import fcntl
import json
import logging
import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mobilenet_pipeline import provenance
from mobilenet_pipeline.config import Recipe

if TYPE_CHECKING:
    import keras
    import numpy as np

MODEL_NAME = "model"
_PROBE_SECONDS = 5
_DIGEST_LENGTH = 36  # of a dataset's digest; MLflow refuses longer ones


class StoreError(OSError):
    """MLflow cannot be used as it is."""


class StoreAwayError(StoreError, ConnectionError):
    """MLflow does not answer; it may do so later."""


class Terminated(SystemExit):
    """SIGTERM arrived: whoever ordered the training no longer wants it."""


@dataclass(frozen=True)
class CandidateRun:
    """The run that a training writes to. Its methods raise StoreAwayError where MLflow does not answer any longer."""

    run_id: str

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics, so that the curve grows while the training runs."""
        with _answering():
            log_metrics(self.run_id, metrics, step=epoch)

    def log_figure(self, png: bytes, name: str) -> None:
        """Log a figure as `figures/NAME`."""
        with _answering():
            log_file(self.run_id, png, name, "figures")

    def log_model(self, model: "keras.Model", input_example: "np.ndarray") -> str:
        """Log the Keras model, uint8 images (n, 32, 32, 3) to probabilities float32 (n, classes); returns its URI.

        It loads with stock Keras: nothing in it is pickled. Call it inside the run's own `with` block.
        """
        import mlflow.tensorflow
        from mlflow.models import infer_signature

        signature = infer_signature(input_example, model(input_example, training=False).numpy())
        # Named here, for MLflow takes 20 s to work them out.
        requirements = [f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")]
        with _answering(), _without_custom_objects():
            logged = mlflow.tensorflow.log_model(
                model,
                name=MODEL_NAME,
                signature=signature,
                input_example=input_example,
                pip_requirements=requirements,
            )
        return str(logged.model_uri)


def use_store() -> str:
    """Point MLflow at its store and make sure that it answers; returns the tracking URI.

    The store is MLFLOW_TRACKING_URI, else `mlflow.db` and `mlruns/` in the current directory. An SQLite store is made
    or migrated first, by one process at a time. Raises StoreError naming the URI and the remedy within seconds.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    if not given:
        # MLflow wrote it there; left, it would tie this process and its children to this directory for good.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif uri.startswith("sqlite:///"):
        _open_database(uri, Path(uri.removeprefix("sqlite:///")))
    return uri


@contextmanager
def candidate_run(
    recipe: Recipe,
    candidate: str,
    parent_run_id: str | None,
    dataset: Mapping[str, Any],
    flow_run: str | None = None,
) -> Iterator[CandidateRun]:
    """Track the training in the `with` body as a run called RECIPE-CANDIDATE, under the flow's run if there is one.

    `dataset` is dataset.json. The run ends FINISHED; FAILED with the tag `failure` where the body raises; KILLED on
    Ctrl-C and on SIGTERM, which become exceptions so that the body's own clean-up runs. Raises StoreError where
    MLflow does not answer.
    """
    use_store()
    tags = {**provenance.origin(recipe.name, flow_run), "candidate": candidate, "data_digest": str(dataset["digest"])}
    run_id = mlflow.start_run(
        experiment_id=experiment(recipe),
        run_name=f"{recipe.name}-{candidate}",
        parent_run_id=parent_run_id,
        tags=tags,
        log_system_metrics=True,
    ).info.run_id
    try:
        with _terminable():
            _describe(run_id, recipe, candidate, dataset)
            yield CandidateRun(run_id)
    except BaseException as error:
        with suppress(Exception):  # a store that is gone must not hide what went wrong
            MlflowClient().set_tag(run_id, "failure", _failure(error))
        with suppress(Exception):
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    mlflow.end_run("FINISHED")


def parent_run(recipe: Recipe, flow_run: str | None = None) -> str:
    """Start the run that a flow's trainings are under, and leave it running. Finish it with `end_run`."""
    use_store()
    name = f"{recipe.name} {flow_run}" if flow_run else recipe.name
    run = MlflowClient().create_run(experiment(recipe), run_name=name, tags=provenance.origin(recipe.name, flow_run))
    return str(run.info.run_id)


def end_run(run_id: str, status: str = "FINISHED") -> None:
    """End a flow's run as FINISHED, FAILED or KILLED. Trainings under it that still run have died: they are KILLED."""
    use_store()
    client = MlflowClient()
    run = client.get_run(run_id)
    under = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([run.info.experiment_id], under):
        client.set_terminated(child.info.run_id, "KILLED")
    client.set_terminated(run_id, status)


def restore_run(
    recipe: Recipe,
    candidate: str,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    dataset: Mapping[str, Any],
) -> str:
    """Make a finished run from a training's files, for a store that lacks the run that trained it.

    `training` is training.json and `history` the rows of history.csv. The tag `training_run` keeps the original's id.
    """
    client = MlflowClient()
    recipe = recipe.with_precision(bfloat16=training.get("precision") == "pointwise_bfloat16")
    tags = {**provenance.origin(recipe.name), "candidate": candidate, "data_digest": str(dataset["digest"])}
    for fact in ("git_commit", "git_dirty", "flow_run"):  # of here and now, which did not train this
        tags.pop(fact, None)
    tags |= {"git_commit": training["git_commit"]} if training.get("git_commit") else {}
    tags["training_run"] = str(training["run_id"])
    run_id = str(client.create_run(experiment(recipe), run_name=f"{recipe.name}-{candidate}", tags=tags).info.run_id)
    _describe(run_id, recipe, candidate, dataset)
    for row in history:
        log_metrics(run_id, {key: row[key] for key in row if key != "epoch"}, step=int(row["epoch"]))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
    """Log metrics to a run, finished or not, and to the logged model `model_id` of it."""
    now = int(time.time() * 1000)
    entries = [Metric(key, float(value), now, step, model_id, run_id=run_id) for key, value in metrics.items()]
    MlflowClient().log_batch(run_id, metrics=entries)


def log_file(run_id: str, content: bytes, name: str, folder: str | None = None) -> None:
    """Log bytes as the artefact FOLDER/NAME of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        path.write_bytes(content)
        MlflowClient().log_artifact(run_id, str(path), folder)


def experiment(recipe: Recipe) -> str:
    """The id of the recipe's experiment: made if it is new, brought back if someone deleted it."""
    client = MlflowClient()
    if client.get_experiment_by_name(recipe.name) is None:
        with suppress(MlflowException):  # another training makes it at the same moment
            return str(client.create_experiment(recipe.name))
    found = client.get_experiment_by_name(recipe.name)
    if found is None:
        raise StoreError(f"MLflow at {mlflow.get_tracking_uri()} neither has nor makes the experiment {recipe.name!r}")
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _probe(uri: str) -> None:
    """Ask the server once. MLflow's own client would try for minutes, which is right only once a training runs."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    shown = _shown(uri)
    remedy = "start that server, correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db in this directory"
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
    except Exception:  # refused, unknown host, silence, broken TLS: MLflow wraps each differently
        raise StoreAwayError(f"no MLflow server answers at {shown} (MLFLOW_TRACKING_URI); {remedy}") from None
    if answer.status_code == 403:
        remedy = "name this host in the server's --allowed-hosts, with and without its port, or check your permissions"
    if answer.status_code != 200:
        raise StoreError(f"{shown} (MLFLOW_TRACKING_URI) answers {answer.status_code}, not as MLflow does; {remedy}")


def _open_database(uri: str, path: Path) -> None:
    """Make or migrate the database while no other process of the pipeline does; one that is ready is only looked at."""
    if _is_ready(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed when the file closes, also by the death of the process
        try:
            if _revision(path) not in (None, _newest_revision()):
                _migrate(uri, path)
            MlflowClient(uri).search_experiments(max_results=1)  # makes the tables of a new database
        except Exception as error:  # of MLflow, SQLAlchemy, Alembic or SQLite
            copy = Path(f"{path}.before-migration")
            kept = f"; a copy from before the migration is {copy}" if copy.exists() else ""
            cause = " ".join(str(error).split())[:200]
            raise StoreError(
                f"MLflow {mlflow.__version__} cannot use {path} ({cause}); if it is of a newer MLflow install that, "
                f"else move the file away to start afresh{kept}"
            ) from error


@cache
def _newest_revision() -> str:
    """The migration that the installed MLflow works with; reading its scripts takes 0.1 s."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _revision(path: Path) -> str | None:
    """The migration that the database is at, None for one without tables."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _is_ready(path: Path) -> bool:
    """Whether the installed MLflow can use the database as it is: MLflow makes the first experiment last."""
    try:
        if _revision(path) != _newest_revision():
            return False
        with closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT 1 FROM experiments").fetchone() is not None
    except sqlite3.Error:  # told by whoever opens it
        return False


def _migrate(uri: str, path: Path) -> None:
    """Bring an older MLflow's database up to date, keeping a copy of it."""
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(f"{path}.before-migration")) as new:
        old.backup(new)
    _upgrade_db(create_sqlalchemy_engine(uri))


@contextmanager
def _answering() -> Iterator[None]:
    """Say in a sentence that MLflow, which has answered before, has failed, after the minutes that its client tries."""
    try:
        yield
    except MlflowException as error:
        cause = " ".join(str(error).split())[:300]
        raise StoreAwayError(
            f"MLflow at {_shown(mlflow.get_tracking_uri())} has failed ({cause}); put that right and run again: the "
            "training goes on after the last epoch that is saved"
        ) from None


def _shown(uri: str) -> str:
    """The address without a password."""
    return urlsplit(uri)._replace(netloc=urlsplit(uri).netloc.rpartition("@")[2]).geturl()


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, which unwinds and cleans up as any other does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated(128 + signum)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _without_custom_objects() -> Iterator[None]:
    """Hide objects registered with Keras, which MLflow would pickle beside every model."""
    import keras

    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(kept)


def _describe(run_id: str, recipe: Recipe, candidate: str, dataset: Mapping[str, Any]) -> None:
    parameters = provenance.parameters(recipe, candidate)
    digest = str(dataset["digest"])
    tags = {"mlflow.data.context": "training", "digest": digest, "dvc_version": provenance.data_version(recipe.name)}
    images = Dataset(
        name=recipe.name,
        digest=digest[:_DIGEST_LENGTH],
        source_type="dvc",
        source=json.dumps({"uri": f"data/{recipe.name}", "source": dataset.get("source")}),
        profile=json.dumps({key: dataset.get(key) for key in ("rows", "class_names", "image_shape")}),
    )
    client = MlflowClient()
    client.log_batch(run_id, params=[Param(key, value) for key, value in parameters.items()])
    client.log_inputs(run_id, [DatasetInput(images, [InputTag(key, value) for key, value in tags.items() if value])])


def _failure(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "asked to end, by SIGTERM or Ctrl-C"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
