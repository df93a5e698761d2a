"""The served artefact, a LiteRT model: images in, probabilities and energies out. Knows no TensorFlow."""

import hashlib
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

INPUT = "RGB images, uint8 from 0 to 255, not scaled"
"""What a model takes. Images scaled to 0 to 1 get an answer, too, but a wrong one: to the model they are black."""

OUTPUTS = {"probabilities": "float32 (n, classes)", "energy": "float32 (n,), the logsumexp of the logits"}
"""What a model gives. The outputs differ in rank; their order in the file means nothing."""


LARGEST = 2**28
"""Bytes of the largest tensor, above which a model is asked fewer images at once."""


class ArtefactError(ValueError):
    """A file that is no model, or a model that is not one of ours."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hex. The file may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, name: str | None = None) -> None:
    """Raise ArtefactError, with both hashes, if the file, `name` in the message, is missing or was changed."""
    found = sha256_of(path) if path.is_file() else "missing"
    if found != expected:
        raise ArtefactError(f"{name or path} is damaged: its SHA-256 is {found}, it should be {expected}")


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities float32 (n, classes), and energies float32 (n,): the logsumexp of the logits.

    A low energy means an image unlike the training images (Liu et al. 2020, arXiv:2010.03759, who call its negative the
    energy). Artefacts of earlier releases give no energies; `energy` is None then.
    """

    probabilities: np.ndarray
    energy: np.ndarray | None

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return the answers of all parts of one artefact, in their order."""
        probabilities, energies = zip(*((part.probabilities, part.energy) for part in parts), strict=True)
        return cls(np.concatenate(probabilities), None if energies[0] is None else np.concatenate(energies))


class Artefact:
    """A LiteRT model from a file, ready to answer. Any thread may ask; calls run one at a time.

    `image_shape` is (h, w, 3). Raises ArtefactError, naming the file, if it is missing, damaged, or does not map images
    uint8 (n, h, w, 3) to probabilities float32 (n, classes) and perhaps energies float32 (n,).
    """

    def __init__(self, path: Path | str, threads: int = 2) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.path = Path(path)
        if not self.path.is_file():
            raise ArtefactError(f"{self.path} does not exist; it should be a LiteRT model")
        try:
            # From bytes, not from the path: replacing the file must not reach into a model that is in use.
            interpreter = Interpreter(model_content=self.path.read_bytes() or b"empty", num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ArtefactError(
                f"{self.path} is not a LiteRT model ({_first_line(error)}); export it again, or restore it"
            ) from None
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        taken, given = [_kind(tensor) for tensor in inputs], [_kind(tensor) for tensor in outputs]
        # By rank, not by place: the converter sorts the outputs by name.
        places = {len(shape): tensor["index"] for (_, shape), tensor in zip(given, outputs, strict=True)}
        if (
            [kind for kind, _ in taken] != ["uint8"]
            or taken[0][1][2:] != (3,)
            or {kind for kind, _ in given} != {"float32"}
            or (sorted(places), len(given)) not in (([1], 1), ([0, 1], 2))
        ):
            raise ArtefactError(
                f"{self.path} maps {taken} to {given}; an artefact maps images uint8 (n, h, w, 3) to float32 (n, "
                "classes) and energies float32 (n,): export it with this project"
            )
        self.image_shape = taken[0][1]
        self._interpreter = interpreter
        self._input, self._probabilities, self._energy = inputs[0]["index"], places[1], places.get(0)
        self._batch = int(inputs[0]["shape"][0])
        self._bytes = max(4 * math.prod(tensor["shape"][1:]) for tensor in interpreter.get_tensor_details())
        self._lock = threading.Lock()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities float32 (n, classes) of images uint8 (n, *image_shape), like `answer`."""
        return self.answer(images).probabilities

    def answer(self, images: np.ndarray) -> Answers:
        """Return the probabilities and energies of images uint8 (n, *image_shape).

        The model is asked so many images at a time that its memory has a bound. Raises ValueError for another shape or
        type. A change of n costs a little: the tensors are allocated again.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or len(images) == 0:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be uint8 (n, {expected}) with n ≥ 1, not {images.dtype} {images.shape}")
        together = max(1, LARGEST // self._bytes)
        return Answers.joined(
            self._answer(images[start : start + together]) for start in range(0, len(images), together)
        )

    def _answer(self, images: np.ndarray) -> Answers:
        with self._lock:
            if len(images) != self._batch:
                self._batch = 0  # should the allocation fail, the next call tries it again
                self._interpreter.resize_tensor_input(self._input, images.shape, strict=False)
                self._interpreter.allocate_tensors()
                self._batch = len(images)
            self._interpreter.set_tensor(self._input, images)
            self._interpreter.invoke()
            energy = None if self._energy is None else self._interpreter.get_tensor(self._energy)
            return Answers(self._interpreter.get_tensor(self._probabilities), energy)


def _kind(tensor: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Type and shape without the batch dimension."""
    return np.dtype(tensor["dtype"]).name, tuple(int(size) for size in tensor["shape_signature"][1:])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
