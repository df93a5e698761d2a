"""MLflow runs: one for each training, and a parent run for each flow."""

import getpass
import json
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus, Metric, Param, Run
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import INPUT
from mobilenet_pipeline.registry import identity
from mobilenet_pipeline.registry.away import answering
from mobilenet_pipeline.registry.store import (
    check_artefacts,
    check_registry,
    experiment,
    use_store,
)
from mobilenet_pipeline.workspace import provenance
from mobilenet_pipeline.workspace.paths import data_folder

if TYPE_CHECKING:
    import keras
    import numpy as np


MODEL_NAME = "model"
# MLflow's limit is 36. MLflow keeps the first entry of a name and digest, and earlier versions of this project logged
# 36 digits with a type of source that MLflow does not know.
_DIGEST_LENGTH = 32
_WORKSPACE = "workspace"
"""The tag that names machine and folder of a run, so that a later run there can end it if it was killed."""
_SILENCE_SECONDS = 86_400
_PARAMETER_LENGTH, _VALUE_LENGTH = 500, 100
"""The longest text of a parameter, and of a value that stands for a list, in characters."""
CONTINUES = "repair it and run again: the training continues after the last saved epoch"


class Terminated(SystemExit):
    """SIGTERM arrived: a stop of the training was requested."""


@dataclass(frozen=True)
class CandidateRun:
    """The MLflow run of a training. Its methods raise StoreAwayError if MLflow no longer answers."""

    run_id: str

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one row of the learning curve; MLflow shows the curve during the training."""
        with answering(CONTINUES):
            log_metrics(self.run_id, _curve(metrics), epoch)

    def log_figure(self, png: bytes, name: str) -> None:
        """Log a figure as `figures/NAME`."""
        with answering(CONTINUES):
            log_file(self.run_id, png, name, "figures")

    def log_model(
        self, model: "keras.Model", input_example: "np.ndarray", class_names: Sequence[str], step: int
    ) -> str:
        """Log the Keras model after `step` optimiser steps and return its URI.

        The model maps uint8 images (n, 32, 32, 3) to probabilities float32 (n, classes). It loads with stock Keras,
        because nothing in it is pickled. Its metadata has the class names. Call this inside the run's `with` block.
        """
        import mlflow.tensorflow
        from mlflow.models import infer_signature

        signature = infer_signature(input_example, model(input_example, training=False).numpy())
        # MLflow would take 20 s to infer the requirements.
        requirements = [f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")]
        with answering(CONTINUES), _without_custom_objects():
            logged = mlflow.tensorflow.log_model(
                model,
                name=MODEL_NAME,
                # MLflow copies the run's metrics of this step to the model: system metrics, if it were a low number.
                step=step,
                tags={MLFLOW_SOURCE_NAME: MlflowClient().get_run(self.run_id).data.tags[MLFLOW_SOURCE_NAME]},
                signature=signature,
                input_example=input_example,
                pip_requirements=requirements,
                metadata={"class_names": list(class_names), "input": INPUT},
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
    """Track the training in the `with` body as a run of its own, whatever MLFLOW_RUN_ID names.

    The run is a child of `parent_run_id` if that is given. `dataset` is the content of dataset.json. The run ends as
    FINISHED; as FAILED, with the tag `failure`, if the body raises; as KILLED after Ctrl-C or SIGTERM, which become
    exceptions so that the body can clean up. Raises StoreError if MLflow does not answer or cannot store artefacts.
    """
    check_store(recipe)
    tags = {"candidate": candidate, "data_digest": str(dataset["digest"])}
    tags |= {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
    source = f"dvc repro train@{recipe.name}-{candidate}"
    run_id = _start(recipe, f"{candidate} · {recipe.name}", source, flow_run, tags)
    # By id: otherwise MLflow would continue the run that the environment names, or refuse to start beside another one.
    mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=True)
    try:
        with _terminable():
            _describe(run_id, parameters(recipe, candidate), recipe, dataset)
            yield CandidateRun(run_id)
    except BaseException as error:
        with suppress(Exception):  # an unavailable store must not hide the first error
            MlflowClient().set_tag(run_id, "failure", _failure(error), synchronous=True)
        with suppress(Exception):
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            _fail_unfinished_models(run_id)
        raise
    mlflow.end_run("FINISHED")


def parent_run(recipe: Recipe, dataset: Mapping[str, Any], flow_run: str | None = None) -> str:
    """Start the parent run of a flow's trainings and return its id. The run stays active until `end_run`."""
    check_store(recipe)
    run_id = _start(recipe, recipe.name, f"mobilenet-pipeline run --recipe {recipe.name}", flow_run, {})
    _describe(run_id, {"recipe": recipe.name} | _settings(recipe), recipe, dataset)
    return run_id


def close_dead(recipe: Recipe, is_over: Callable[[str], bool]) -> None:
    """End the active runs of the recipe whose processes are gone, as KILLED. Call this in the recipe's only run here.

    `is_over` says whether the Prefect flow run with this id has ended. A run elsewhere is dead if its flow run has
    ended, or after a day without a metric.
    """
    for run in MlflowClient().search_runs([experiment(recipe)], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        here, flow_run = tags.get(_WORKSPACE) == place(), tags.get("flow_run")
        if here or (flow_run and is_over(flow_run)) or time.time() - _last_sign(run) > _SILENCE_SECONDS:
            _kill(run.info.run_id)


def active(recipe: Recipe) -> bool:
    """Return whether a run of the recipe is active, as one of a killed process is until `close_dead`."""
    return bool(MlflowClient().search_runs([experiment(recipe)], "attributes.status = 'RUNNING'", max_results=1))


def place() -> str:
    """Return machine and folder of this workspace."""
    return f"{socket.gethostname()}:{Path.cwd()}"


def conclude(
    run_id: str,
    verdict: str,
    reason: str,
    champion: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Log what a flow decided to its run, so that the list of runs shows it.

    `verdict` and `champion`, such as its version, become tags. `reason` becomes the description. `metrics` are the
    champion's on today's test images.
    """
    use_store()
    for key, value in {"verdict": verdict, MLFLOW_RUN_NOTE: reason, **champion}.items():
        MlflowClient().set_tag(run_id, key, value, synchronous=True)
    log_metrics(run_id, metrics)


def end_run(run_id: str, status: str = "FINISHED") -> None:
    """End a flow's run as FINISHED, FAILED or KILLED.

    Child runs that are still active become KILLED: their processes have ended.
    """
    use_store()
    client = MlflowClient()
    run = client.get_run(run_id)
    children = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([run.info.experiment_id], children):
        _kill(child.info.run_id)
    client.set_terminated(run_id, status)


def restore_run(
    recipe: Recipe,
    candidate: str,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    dataset: Mapping[str, Any],
    parent_run_id: str | None = None,
) -> str:
    """Make a finished run from a training's files and return its id.

    It replaces a run that the store lacks, or is that of a second export, such as the candidate's int8 twin. `training`
    is the content of training.json, `history` the rows of history.csv. The tag `training_run` has the id of the
    training's run.
    """
    recipe = recipe.with_precision(bfloat16=training.get("precision") == "pointwise_bfloat16")
    tags = {"candidate": candidate, "data_digest": str(dataset["digest"]), "training_run": str(training["run_id"])}
    # They describe this process, not the training's.
    tags |= dict.fromkeys(("git_commit", MLFLOW_GIT_COMMIT), training.get("git_commit") or "")
    tags |= dict.fromkeys(("git_dirty", "flow_run", _WORKSPACE), "")
    tags |= {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
    source = f"dvc repro {'train' if candidate in recipe.candidates else 'export'}@{recipe.name}-{candidate}"
    run_id = _start(recipe, f"{candidate} · {recipe.name}", source, None, tags, training.get("trained_at"))
    _describe(run_id, parameters(recipe, candidate), recipe, dataset)
    for row in history:
        metrics = {key: row[key] for key in row if key != "epoch"}
        log_metrics(run_id, _curve(metrics), int(row["epoch"]))
    MlflowClient().set_terminated(run_id, "FINISHED")
    return run_id


def log_metrics(
    run_id: str,
    metrics: Mapping[str, float],
    step: int = 0,
    model_id: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Log metrics to a run, active or ended, and to its logged model `model_id`, which keeps their dataset."""
    now = int(time.time() * 1000)
    name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
    entries = [Metric(key, float(value), now, step, model_id, name, digest, run_id) for key, value in metrics.items()]
    MlflowClient().log_batch(run_id, metrics=entries, synchronous=True)


def log_parameters(run_id: str, values: Mapping[str, str]) -> None:
    """Log parameters to a run, active or ended."""
    MlflowClient().log_batch(run_id, params=[Param(key, value) for key, value in values.items()], synchronous=True)


def log_file(run_id: str, content: bytes, name: str, folder: str | None = None) -> None:
    """Log bytes as the artefact FOLDER/NAME of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        path.write_bytes(content)
        MlflowClient().log_artifact(run_id, str(path), folder)


def dataset_of(recipe: Recipe, document: Mapping[str, Any]) -> Dataset:
    """Return the recipe's images as MLflow's entry of a dataset; `document` is the content of dataset.json.

    `mlflow.data.get_source` knows its source: the folder of the images, relative to the workspace, so that the entry is
    the same on every machine.
    """
    return Dataset(
        name=recipe.name,
        digest=str(document["digest"])[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(data_folder(recipe)), "source": recipe.data.path or recipe.data.source}),
        profile=json.dumps({key: document.get(key) for key in ("rows", "class_names", "image_shape")}),
    )


def check_store(recipe: Recipe) -> None:
    """Check that MLflow's runs and registry answer and are the recipe's, and that artefacts can be stored.

    Raises StoreError with the cause and the remedy, within seconds, and what `identity.join` raises.
    """
    use_store()
    check_registry()
    identity.join(recipe)
    check_artefacts(MlflowClient().get_experiment(experiment(recipe)).artifact_location)


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

    Candidate settings have their own names, the others are called SECTION.KEY. recipe.json has long values whole.
    """
    settings = {"recipe": recipe.name, "candidate": candidate} | recipe.candidate(candidate).model_dump()
    return {key: _shown(value) for key, value in settings.items()} | _settings(recipe)


def _settings(recipe: Recipe) -> dict[str, str]:
    """Return the settings that all candidates share, called SECTION.KEY."""
    sections = {section: getattr(recipe, section).model_dump() for section in ("data", "split", "gate", "serving")}
    return {f"{name}.{key}": _shown(value) for name, section in sections.items() for key, value in section.items()}


def _shown(value: Any) -> str:
    """Return the value as text; of a long list, its length and ends. MLflow would cut a text after 6,000 characters."""
    text = str(value)
    if len(text) <= _PARAMETER_LENGTH or not isinstance(value, list):
        return text
    ends = (_start_of(str(value[0])), _start_of(str(value[-1])))
    return f"{len(value):,} values, from {ends[0]} to {ends[1]}; recipe.json has all"


def _start_of(text: str) -> str:
    return text if len(text) <= _VALUE_LENGTH else f"{text[: _VALUE_LENGTH - 1]}…"


def _curve(row: Mapping[str, float]) -> dict[str, float]:
    """Return a row of the learning curve with names that group MLflow's charts: train/… and validation/…"""
    splits = ("train_", "validation_")
    return {key.replace("_", "/", 1) if key.startswith(splits) else f"train/{key}": value for key, value in row.items()}


def _start(
    recipe: Recipe, name: str, source: str, flow_run: str | None, tags: Mapping[str, str], at: str | None = None
) -> str:
    """Create a run called `NAME · TIME`, and return its id; `source` is the command that MLflow shows.

    `tags` replace those of this process. An empty value leaves a tag out.
    """
    origin = provenance.origin(recipe.name, flow_run)
    time_of_start = datetime.fromisoformat(at).astimezone() if at else datetime.now().astimezone()
    all_tags = origin | {
        MLFLOW_SOURCE_NAME: source,
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_GIT_COMMIT: origin.get("git_commit", ""),
        MLFLOW_USER: _user(),
        _WORKSPACE: place(),
        **tags,
    }
    run = MlflowClient().create_run(
        experiment(recipe),
        run_name=f"{name} · {time_of_start:%Y-%m-%d %H:%M}",
        tags={key: value for key, value in all_tags.items() if value},
    )
    return str(run.info.run_id)


def _describe(run_id: str, values: Mapping[str, str], recipe: Recipe, dataset: Mapping[str, Any]) -> None:
    digest, data_version = str(dataset["digest"]), provenance.data_version(recipe.name)
    tags = {MLFLOW_DATASET_CONTEXT: "training", "digest": digest, "dvc_version": data_version}
    inputs = [InputTag(key, value) for key, value in tags.items() if value]
    log_parameters(run_id, values)
    log_file(run_id, recipe.model_dump_json(indent=2).encode(), "recipe.json")
    MlflowClient().log_inputs(run_id, [DatasetInput(dataset_of(recipe, dataset), inputs)])


def _kill(run_id: str) -> None:
    """End the run of a process that was killed."""
    MlflowClient().set_terminated(run_id, "KILLED")
    _fail_unfinished_models(run_id)


def _fail_unfinished_models(run_id: str) -> None:
    """Mark the run's logged models that were not finished as failed; MLflow would call them pending for good."""
    client = MlflowClient()
    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        if client.get_logged_model(output.model_id).status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(output.model_id, LoggedModelStatus.FAILED)


def _last_sign(run: Run) -> float:
    """Return the time, in seconds since 1970, of the newest metric of the run and its children, or of its start."""
    client = MlflowClient()
    children = client.search_runs([run.info.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'")
    histories = [
        client.get_metric_history(each.info.run_id, key)
        for each in (run, *children)
        for key in each.data.metrics
        if key.startswith("system/")
    ]
    starts = [each.info.start_time for each in (run, *children)]
    return max([*starts, *(metric.timestamp for history in histories for metric in history[-1:])]) / 1000


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id may have no name
        return ""


def _failure(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "stop requested by SIGTERM or Ctrl-C"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
