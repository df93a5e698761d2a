"""The reference of a version among the artefacts of its run, for machines that have the registry only."""

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.registry.store import StoreError, use_store
from mobilenet_pipeline.registry.versions import Version, find_run, has_artefact

FOLDER, NAME = "monitoring", "reference.npz"


def put(version: Version, data: bytes) -> bool:
    """Store the reference with the version's run; return whether the store still has that run."""
    use_store()
    if find_run(version.run_id) is None:
        return False
    runs.log_file(version.run_id, data, NAME, FOLDER)
    return True


def fetch(version: Version) -> bytes | None:
    """Return the stored reference, None if there is none.

    Raises StoreAwayError if the artefact store does not answer, and StoreError if the reference cannot be read.
    """
    use_store()
    if not has_artefact(version.run_id, f"{FOLDER}/{NAME}"):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = MlflowClient().download_artifacts(version.run_id, f"{FOLDER}/{NAME}", scratch)
            return Path(path).read_bytes()
        except MlflowException as error:
            raise StoreError(
                f"{FOLDER}/{NAME} of {version.name} version {version.version} cannot be read ({error}); look again"
            ) from error
