"""The predictions of a model, other measurements of it, and the file predictions.npz."""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.workspace.files import whole


class PredictionsError(ValueError):
    """The predictions of a model are missing, damaged, or from an earlier version of this project."""


@dataclass(frozen=True, eq=False)
class Facts:
    """Measurements of a model in addition to its predictions.

    `corrupted` maps each corruption to bool (n,): whether the model classifies each corrupted test image correctly.
    `bytes` is the size of the served artefact; `p50_ms` and `p99_ms` are its latencies for one image. `preprocessing`
    is the fingerprint of the image decoder at training. `overlap` is the number of test images that are also training
    images. `set_threshold` is the least probability of a class in a prediction set, found on the validation images;
    None for a model without prediction sets. `withdrawn` is the reason of the person who withdrew the model, or None.
    `in_turn_ms` is the latency in a comparison that timed all its models in turn; no other times can be compared.
    """

    corrupted: Mapping[str, np.ndarray]
    bytes: int
    p50_ms: float
    p99_ms: float
    preprocessing: str
    overlap: int
    set_threshold: float | None = None
    withdrawn: str | None = None
    in_turn_ms: float | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers for the test images.

    `probabilities` (n, k), `labels` (n,) integers, the `data_digest` of the dataset, and the registered `version` of
    the model, None if it has none. Sentences of the gate call it by its `name`.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    data_digest: str
    facts: Facts
    version: str | None = None
    name: str = "the champion"

    @cached_property
    def right(self) -> np.ndarray:
        """Bool (n,): whether the model classified each image correctly."""
        return np.argmax(self.probabilities, axis=1) == self.labels


ARRAYS = (
    "probabilities",
    "labels",
    "rows",
    "validation_probabilities",
    "validation_labels",
    "validation_rows",
    "corrupted_right",
    "corrupted_rows",
    "data_digest",
)


MAPPED = 2**24
"""Bytes from which on an array stays in its file: the 1.4 GB of 360,000 images with 1,000 classes need no memory."""
ALIGNED = 64
"""The numbers of an array begin at a multiple of so many bytes in the file, so that they can be used where they are."""
LOCAL_HEADER, FIELD, ZIP64, PADDING = 30, 4, 20, 0xD935
"""Bytes of a ZIP member's header, of the header of a field, and of the field for large files; the padding's number."""


def save_predictions(path: Path, predictions: dict[str, np.ndarray]) -> None:
    """Write predictions.npz atomically; the same predictions give the same bytes."""
    _require(path, predictions)
    with whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in ARRAYS:
            array, member = np.asanyarray(predictions[name]), zipfile.ZipInfo(f"{name}.npy")
            if array.nbytes >= MAPPED:
                size = -(archive.start_dir + LOCAL_HEADER + len(member.filename) + FIELD + ZIP64) % ALIGNED
                member.extra = struct.pack("<HH", PADDING, size) + bytes(size)
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a predictions.npz.

    Raises PredictionsError if the file is missing or damaged, or lacks an array.
    """
    arrays = read_arrays(path)
    _require(path, arrays)
    return arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a predictions.npz of any version of this project; large ones are memory-mapped.

    Raises PredictionsError if the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            mapped = {name: _mapped(path, archive.zip, f"{name}.npy") for name in archive.files}
            return {name: archive[name] if array is None else array for name, array in mapped.items()}
    except FileNotFoundError:
        raise PredictionsError(f"{path} does not exist; evaluate that candidate first") from None
    except Exception as error:  # zipfile, zlib and NumPy raise different errors for a damaged file
        raise PredictionsError(f"{path} cannot be read ({error}); evaluate that candidate again") from None


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """Return a large array of the archive, memory-mapped; None if it is small, or not stored as in `save_predictions`.

    Raises BadZipFile if its bytes are damaged.
    """
    member = archive.getinfo(name)
    if member.file_size < MAPPED or member.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
        while file.read(2**20):  # compares the checksum at the end
            pass
    with path.open("rb") as file:
        file.seek(member.header_offset)
        lengths = struct.unpack("<26x2H", file.read(LOCAL_HEADER))
    start = member.header_offset + LOCAL_HEADER + sum(lengths) + header
    if by_columns or dtype.hasobject or start % ALIGNED:
        return None
    return np.asarray(np.memmap(path, dtype, "r", start, shape))


def predictions_of(
    arrays: Mapping[str, np.ndarray], document: Mapping[str, Any], preprocessing: str | None, version: str | None = None
) -> Predictions:
    """Return the predictions of a candidate or of registered `version`.

    `arrays` are those of predictions.npz, `document` is the evaluation's, `preprocessing` the fingerprint from the
    training. Raises PredictionsError if arrays and document are of different data, or the document lacks a measurement.
    """
    if str(arrays["data_digest"]) != document.get("data_digest"):
        raise PredictionsError("predictions.npz and its metrics are of different data; evaluate that candidate again")
    sets = document.get("prediction_sets") or {}  # evaluations of earlier versions of this project have none
    try:
        names = list(document["corruptions"])
        right = np.unpackbits(arrays["corrupted_right"], axis=0, count=len(names)).astype(bool)
        facts = Facts(
            corrupted=dict(zip(names, right, strict=True)),
            **document["artefact"],
            preprocessing=preprocessing or "not recorded",
            overlap=document["overlap"],
            set_threshold=sets.get("threshold"),
        )
    except (KeyError, TypeError) as error:
        raise PredictionsError(
            f"the evaluation of {f'version {version}' if version else 'a candidate'} lacks {error}: it is from an "
            "earlier version of this project; evaluate it again with `mobilenet-pipeline run --force --recipe …`"
        ) from None
    return Predictions(arrays["probabilities"], arrays["labels"], str(arrays["data_digest"]), facts, version)


def _require(path: Path, predictions: dict[str, np.ndarray]) -> None:
    missing = [name for name in ARRAYS if name not in predictions]
    if missing:
        raise PredictionsError(f"{path} lacks {', '.join(missing)}; evaluate that candidate again")
