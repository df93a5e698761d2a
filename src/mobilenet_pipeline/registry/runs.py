"""MLflow runs: one for each training, and a parent run for each flow."""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.store import StoreAwayError, StoreError, shown, use_store
from mobilenet_pipeline.workspace import provenance

if TYPE_CHECKING:
    import keras
    import numpy as np


MODEL_NAME = "model"
_DIGEST_LENGTH = 36  # MLflow's limit for a dataset's digest


class Terminated(SystemExit):
    """SIGTERM arrived: a stop of the training was requested."""


@dataclass(frozen=True)
class CandidateRun:
    """The MLflow run of a training. Its methods raise StoreAwayError if MLflow no longer answers."""

    run_id: str

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one epoch; MLflow shows the curve during the training."""
        with _answering():
            log_metrics(self.run_id, metrics, step=epoch)

    def log_figure(self, png: bytes, name: str) -> None:
        """Log a figure as `figures/NAME`."""
        with _answering():
            log_file(self.run_id, png, name, "figures")

    def log_model(self, model: "keras.Model", input_example: "np.ndarray") -> str:
        """Log the Keras model and return its URI.

        The model maps uint8 images (n, 32, 32, 3) to probabilities float32 (n, classes). It loads with stock Keras,
        because nothing in it is pickled. Call this inside the run's `with` block.
        """
        import mlflow.tensorflow
        from mlflow.models import infer_signature

        signature = infer_signature(input_example, model(input_example, training=False).numpy())
        # MLflow would take 20 s to infer the requirements.
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


@contextmanager
def candidate_run(
    recipe: Recipe,
    candidate: str,
    parent_run_id: str | None,
    dataset: Mapping[str, Any],
    flow_run: str | None = None,
) -> Iterator[CandidateRun]:
    """Track the training in the `with` body as the run RECIPE-CANDIDATE.

    The run is a child of `parent_run_id` if that is given. `dataset` is the content of dataset.json. The run ends as
    FINISHED; as FAILED, with the tag `failure`, if the body raises; as KILLED after Ctrl-C or SIGTERM, which become
    exceptions so that the body can clean up. Raises StoreError if MLflow does not answer.
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
        with suppress(Exception):  # an unavailable store must not hide the first error
            MlflowClient().set_tag(run_id, "failure", _failure(error))
        with suppress(Exception):
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    mlflow.end_run("FINISHED")


def parent_run(recipe: Recipe, flow_run: str | None = None) -> str:
    """Start the parent run of a flow's trainings and return its id.

    The run stays active until `end_run`.
    """
    use_store()
    name = f"{recipe.name} {flow_run}" if flow_run else recipe.name
    run = MlflowClient().create_run(experiment(recipe), run_name=name, tags=provenance.origin(recipe.name, flow_run))
    return str(run.info.run_id)


def end_run(run_id: str, status: str = "FINISHED") -> None:
    """End a flow's run as FINISHED, FAILED or KILLED.

    Child runs that are still active become KILLED: their processes have ended.
    """
    use_store()
    client = MlflowClient()
    run = client.get_run(run_id)
    children = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([run.info.experiment_id], children):
        client.set_terminated(child.info.run_id, "KILLED")
    client.set_terminated(run_id, status)


def restore_run(
    recipe: Recipe,
    candidate: str,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    dataset: Mapping[str, Any],
) -> str:
    """Make a finished run from a training's files and return its id.

    It replaces a run that the store lacks. `training` is the content of training.json, `history` the rows of
    history.csv. The tag `training_run` has the id of the original run.
    """
    client = MlflowClient()
    recipe = recipe.with_precision(bfloat16=training.get("precision") == "pointwise_bfloat16")
    tags = {**provenance.origin(recipe.name), "candidate": candidate, "data_digest": str(dataset["digest"])}
    for key in ("git_commit", "git_dirty", "flow_run"):  # they describe this process, not the training's
        tags.pop(key, None)
    tags |= {"git_commit": training["git_commit"]} if training.get("git_commit") else {}
    tags["training_run"] = str(training["run_id"])
    run_id = str(client.create_run(experiment(recipe), run_name=f"{recipe.name}-{candidate}", tags=tags).info.run_id)
    _describe(run_id, recipe, candidate, dataset)
    for row in history:
        log_metrics(run_id, {key: row[key] for key in row if key != "epoch"}, step=int(row["epoch"]))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
    """Log metrics to a run, active or ended, and to its logged model `model_id`."""
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
    """Return the id of the recipe's experiment; create or restore it if necessary."""
    client = MlflowClient()
    if client.get_experiment_by_name(recipe.name) is None:
        with suppress(MlflowException):  # another training may create it at the same time
            return str(client.create_experiment(recipe.name))
    entry = client.get_experiment_by_name(recipe.name)
    if entry is None:
        raise StoreError(
            f"MLflow at {mlflow.get_tracking_uri()} cannot create the experiment {recipe.name!r}; read its log"
        )
    if entry.lifecycle_stage == "deleted":
        client.restore_experiment(entry.experiment_id)
    return str(entry.experiment_id)


@contextmanager
def _answering() -> Iterator[None]:
    """Turn MLflow's errors in the `with` body into a StoreAwayError with the remedy.

    MLflow's client retries for minutes before it raises.
    """
    try:
        yield
    except MlflowException as error:
        cause = " ".join(str(error).split())[:300]
        raise StoreAwayError(
            f"MLflow at {shown(mlflow.get_tracking_uri())} has failed ({cause}); repair it and run again: the training "
            "continues after the last saved epoch"
        ) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception in the `with` body, so that the body cleans up."""
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
    """Hide the objects registered with Keras: MLflow would pickle them with a model."""
    import keras

    registered = keras.saving.get_custom_objects()
    copy = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(copy)


def parameters(recipe: Recipe, candidate: str) -> dict[str, str]:
    """Return the settings of candidate and recipe as text.

    Candidate settings have their own names, the others are called SECTION.KEY.
    """
    settings: dict[str, object] = {"recipe": recipe.name, "candidate": candidate}
    settings |= recipe.candidate(candidate).model_dump()
    for section in ("data", "split", "gate"):
        settings |= {f"{section}.{key}": value for key, value in getattr(recipe, section).model_dump().items()}
    return {key: str(value) for key, value in settings.items()}


def _describe(run_id: str, recipe: Recipe, candidate: str, dataset: Mapping[str, Any]) -> None:
    values = parameters(recipe, candidate)
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
    client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])
    client.log_inputs(run_id, [DatasetInput(images, [InputTag(key, value) for key, value in tags.items() if value])])


def _failure(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "stop requested by SIGTERM or Ctrl-C"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
