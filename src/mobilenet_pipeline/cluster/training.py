"""A training on the cluster: the same calls as a training in the stage's own process."""

import tempfile
from pathlib import Path
from typing import Any

import keras

from mobilenet_pipeline.cluster.job import ClusterError, messages
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.models.network import architecture_of
from mobilenet_pipeline.training.loop import Epoch
from mobilenet_pipeline.training.train import Callbacks, Interrupted, Trained


def train(
    address: str, recipe: Recipe, name: str, dataset: Dataset, callbacks: Callbacks, checkpoint: Path
) -> tuple[Trained, dict[str, Any]]:
    """Train a candidate on the cluster at `address`; return what was trained, and the first worker's machine.

    The state is saved to `checkpoint` after every epoch, and the training continues from it, as one that runs here.
    Raises ClusterError if the cluster is gone or has too little room, ValueError for what another try cannot mend,
    Interrupted soon after a stop is requested.
    """
    keras.config.disable_interactive_logging()  # its progress bars would fill the log
    candidate, told = recipe.candidate(name), 0
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.keras"
        more = {
            "kind": "train",
            "workers": candidate.workers,
            "devices": candidate.devices_per_worker,
            "device": candidate.device,
            "fewer": _fewer(candidate.workers, candidate.batch_size) if candidate.fewer_workers else [],
            "weights": str(architecture_of(candidate).file(candidate)) if candidate.weights == "imagenet" else None,
            "checkpoint": str(checkpoint.resolve()),
            "model": str(model),
        }
        try:
            for message in messages(address, recipe, name, dataset, more, callbacks.say, callbacks.should_stop):
                if "epoch" in message:
                    row = Epoch(**message["epoch"])
                    if row.epoch > told:  # workers that were started again tell all epochs
                        told = row.epoch
                        callbacks.on_epoch(row, message["epochs"], message["left"])
                elif "interrupted" in message:
                    raise Interrupted(message["saved"])
                else:
                    facts = message["trained"]
                    machine = facts.pop("machine")
                    rows = [Epoch(**row) for row in facts.pop("history")]
                    return Trained(keras.models.load_model(model), rows, **facts), machine
        except ClusterError as error:
            if callbacks.should_stop():  # it has come before the driver could listen, or workers had too little time
                raise Interrupted(checkpoint.exists()) from None
            kept = f"; the next run continues from {checkpoint}" if told else f"; {checkpoint} is kept"
            kept = kept if checkpoint.exists() else ""
            raise ClusterError(f"{error}{kept}") from None
    raise AssertionError("a job ends with a result or an error")


def _fewer(workers: int, batch: int) -> list[int]:
    """Return the smaller numbers of workers that can share the global batch equally."""
    return [count for count in range(1, workers) if batch * workers % count == 0]
