"""What a version's answers are compared with in service: its own test images, without their labels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobilenet_pipeline.inference import statistics

IMAGES = 20_000
"""The most test images in a reference. More make neither a test of drift stronger nor its answer different."""
TOGETHER = 256
"""Images that are measured at once."""


class ReferenceError(ValueError):
    """A reference is damaged."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Input statistics (n, k), predicted classes (n,) and confidence (n,) of a version on its test images.

    The columns of `statistics` are called `names`. `rows` is the number of test images; n is smaller if they are many.
    """

    class_names: list[str]
    rows: int
    names: list[str]
    statistics: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def to_bytes(self) -> bytes:
        """Return the reference as an npz archive."""
        stream = io.BytesIO()
        np.savez(
            stream,
            allow_pickle=False,
            class_names=np.array(self.class_names),
            rows=np.array(self.rows),
            names=np.array(self.names),
            statistics=self.statistics.astype(np.float32),
            predicted=self.predicted.astype(np.int32),
            confidence=self.confidence.astype(np.float32),
        )
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "Reference":
        """Return the reference of `to_bytes`. Raises ReferenceError, naming `source`, if it cannot be read."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls(
                    class_names=[str(name) for name in arrays["class_names"]],
                    rows=int(arrays["rows"]),
                    names=[str(name) for name in arrays["names"]],
                    statistics=arrays["statistics"].astype(float),
                    predicted=arrays["predicted"],
                    confidence=arrays["confidence"].astype(float),
                )
        except Exception as error:  # zipfile, zlib and NumPy raise different errors for a damaged file
            raise ReferenceError(f"{source} cannot be read ({error}); delete it, and it is made again") from None


def describe(images: np.ndarray, rows: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> Reference:
    """Return the reference of a version.

    `images` uint8 (m, h, w, 3) is the dataset, memory-mapped or not, `rows` (n,) are its test images, and
    `probabilities` (n, k) the version's answers for them.
    """
    count = len(rows)
    chosen = np.arange(count)
    if count > IMAGES:
        chosen = np.sort(np.random.default_rng(0).choice(count, IMAGES, replace=False))
    parts = [rows[chosen[start : start + TOGETHER]] for start in range(0, len(chosen), TOGETHER)]
    measured = [statistics.table(statistics.measure(np.asarray(images[part]))) for part in parts]
    return Reference(
        class_names=list(class_names),
        rows=count,
        names=list(statistics.NAMES),
        statistics=np.concatenate(measured),
        predicted=probabilities[chosen].argmax(axis=1),
        confidence=probabilities[chosen].max(axis=1).astype(float),
    )
