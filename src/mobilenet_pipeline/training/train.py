"""Candidate, images and strategy to a trained model: plan, loop, finish."""

import hashlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobilenet_pipeline import models, training
from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.metrics.temperature import fit_temperature
from mobilenet_pipeline.models import initial, network
from mobilenet_pipeline.training import checkpoint, distribution
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.training.loop import Epoch, Loop
from mobilenet_pipeline.training.plan import Plan, make_plan
from mobilenet_pipeline.training.steps import Stepper, Validator


class Interrupted(SystemExit):
    """A stop was requested. `saved`: the state is in the checkpoint; it is not if no step was taken yet."""

    def __init__(self, saved: bool) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.saved = saved


@dataclass(frozen=True)
class TrainingData:
    """Images to train on and to validate on, of `classes` classes."""

    training: Images
    validation: Images
    classes: int


@dataclass(frozen=True)
class Callbacks:
    """How a training talks to its caller.

    `on_epoch(epoch, epochs, seconds_left)` is told each finished epoch, those of earlier processes too; `say` is told
    sentences for the log; `should_stop` is asked every few seconds; `on_save` is told that the checkpoint was written.
    """

    on_epoch: Callable[[Epoch, int, float], None] = lambda row, epochs, left: None
    say: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    on_save: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Trained:
    """A trained model with Keras's own layers only, its learning curve, starting weights, and cost.

    `epochs` counts passes over the training images; the last one may be cut short. `cpu_seconds` is user and system
    time, that of earlier processes of the same training included. The head's weights are divided by `temperature`,
    which minimises the validation loss; the learning curve is from before that. `replicas` trained it, with a global
    batch of `global_batch` images.
    """

    model: keras.Model
    history: list[Epoch]
    origin: str
    epochs: float
    cpu_seconds: float
    temperature: float
    replicas: int
    global_batch: int


def train(
    candidate: Candidate,
    data: TrainingData,
    strategy: tf.distribute.Strategy,
    callbacks: Callbacks = Callbacks(),
    checkpoint_path: Path | None = None,
) -> Trained:
    """Train the candidate on `strategy`.

    The global batch is `batch_size` × replicas; the learning rate grows with the replicas (Goyal et al. 2017,
    arXiv:1706.02677). Both are those of all the candidate's workers, even if fewer train. The state is saved to
    `checkpoint_path` after every epoch, and a training that was cut short continues from it.

    Raises DivergedError if the loss is not finite, Interrupted soon after a stop is requested (of several workers, all
    stop), ConnectionError if another worker is gone, and ValueError if the workers of TF_CONFIG differ or are too few.
    """
    keras.config.disable_interactive_logging()  # its progress bars would fill the log
    replicas, planned = strategy.num_replicas_in_sync, distribution.planned_replicas(candidate, strategy)
    global_batch = candidate.batch_size * planned
    identity = _identity(candidate, data, planned)
    candidate = candidate.spread(planned, replicas)
    state = _resume(checkpoint_path, identity, candidate, strategy)
    # If one worker stopped alone, the others would lose what they have not saved.
    should_stop = distribution.any_worker(strategy, callbacks.should_stop)
    keras.utils.set_random_seed(candidate.seed)
    with distribution.name_lost_peers(), strategy.scope():
        model = network.build_trained(candidate, data.classes)
        initial.draw(model, candidate.seed)
    origin = network.load_pretrained(model, candidate)
    stepper = Stepper(candidate, model, strategy, data.training)
    validator = Validator(candidate, model, data.validation)
    if state:
        plan = Plan(state.length, stepper.per_epoch, tuple(candidate.input_sizes), state.costs)
    else:
        made = make_plan(stepper, validator, callbacks.say, should_stop)
        if made is None:
            raise Interrupted(saved=False)
        plan = made
    position = Loop(stepper, plan, state)
    for row in position.history:
        callbacks.on_epoch(row, position.plan.epochs, position.seconds_left_after(row))
    if state:
        callbacks.say(f"continuing after step {position.step} of {position.plan.length}")

    def save() -> None:
        if checkpoint_path and distribution.is_chief(strategy):
            checkpoint.save(checkpoint_path, identity, position.state())
            callbacks.on_save()

    logits = _run(position, validator, callbacks.on_epoch, should_stop, save)
    if logits is None:
        raise Interrupted(saved=checkpoint_path is not None)
    finished, temperature = _finish(candidate, data, model, logits)
    epochs = position.plan.length / position.plan.per_epoch
    cpu_seconds = position.cpu_seconds
    return Trained(finished, position.history, origin, epochs, cpu_seconds, temperature, replicas, global_batch)


def _run(
    position: Loop,
    validator: Validator,
    on_epoch: Callable[[Epoch, int, float], None],
    should_stop: Callable[[], bool],
    save: Callable[[], None],
) -> np.ndarray | None:
    """Train to the end and return the logits of all validation images; None, with the state saved, if stopped."""
    logits = None
    while not position.done:
        if not position.lacks_validation:  # a stopped process may have left the validation to this one
            position.advance()
        stop = should_stop()
        if position.lacks_validation and not stop:
            count = validator.count if position.step == position.plan.length else validator.glance
            logits = validator.logits(count, position.last_size, should_stop)
            stop = logits is None
            if logits is not None:
                position.end_epoch(*validator.scores(logits))
        epoch_ended = position.at_epoch_end and not position.lacks_validation
        if stop or epoch_ended:
            save()
        if epoch_ended:  # reported after it is saved
            row = position.history[-1]
            on_epoch(row, position.plan.epochs, position.seconds_left_after(row))
        if stop:
            return None
    if logits is None:  # the process before ended after the last epoch
        logits = validator.logits(validator.count, position.last_size, should_stop)
    return logits


def _finish(
    candidate: Candidate, data: TrainingData, model: keras.Model, logits: np.ndarray
) -> tuple[keras.Model, float]:
    """Return the model with Keras's own layers and calibrated head, and the temperature."""
    finished = network.build(candidate, data.training.pixels.shape[1:], data.classes)
    finished.set_weights(model.get_weights())
    temperature = fit_temperature(logits, data.validation.labels)
    head = finished.get_layer("logits")
    head.set_weights([weight / temperature for weight in head.get_weights()])
    return finished, temperature


def _identity(candidate: Candidate, data: TrainingData, replicas: int) -> dict[str, Any]:
    """Return everything that must be equal for one training to continue another's state."""
    labels = np.concatenate([data.training.labels, data.validation.labels])
    return {
        "candidate": candidate.model_dump(exclude={"workers", "device", "devices_per_worker", "fewer_workers"}),
        "replicas": replicas,
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        "code": _code(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _resume(
    path: Path | None, identity: Mapping[str, Any], candidate: Candidate, strategy: tf.distribute.Strategy
) -> checkpoint.State | None:
    """Return the state to continue from, if there is one. Raises ValueError if workers differ."""
    if candidate.epochs is None and distribution.workers() > 1:
        raise ValueError("several workers cannot share cpu_minutes: each would count different epochs; set epochs")
    state = checkpoint.load(path, identity) if path else None
    # Before anything is built: workers that differ would wait for each other's weights, or take them over.
    if not distribution.all_agree(strategy, [identity, state.digest if state else ""]):
        raise ValueError(
            "the workers of TF_CONFIG differ in candidate, code, settings, labels or checkpoint: train the same "
            "candidate on all of them, in the same workspace, on a shared disk"
        )
    if path and state is None and distribution.is_chief(strategy):
        checkpoint.set_aside(path)
    return state


def _code() -> str:
    """Return the SHA-256, hex, of the code that decides how a training continues; other code starts afresh."""
    folders = [Path(package.__path__[0]) for package in (models, training)]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def to_rows(history: list[Epoch]) -> list[dict[str, Any]]:
    """Return the learning curve as dictionaries, one an epoch."""
    return [asdict(epoch) for epoch in history]
