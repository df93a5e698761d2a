"""An evaluation on the cluster: the same result as in the stage's own process."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.cluster.job import messages
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.evaluation.predictions import read_arrays


def evaluate(
    address: str, recipe: Recipe, name: str, artefact: Path, dataset: Dataset, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score an artefact on the cluster at `address`; return what `evaluation.evaluate` returns.

    Its latency is that of a core of the cluster. Raises ClusterError if the cluster is gone or has too little room,
    ValueError for what another try cannot mend.
    """
    with tempfile.TemporaryDirectory() as scratch:
        predictions = Path(scratch) / "predictions.npz"
        more = {
            "kind": "evaluate",
            "workers": 1,
            "devices": 1,
            "fewer": [],
            "artefact": str(artefact.resolve()),
            "predictions": str(predictions),
        }
        (message,) = messages(address, recipe, name, dataset, more, say)
        return message["document"], read_arrays(predictions)
