"""Save and load the state of a training, so that a later process can continue it."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.training.budget import Costs
from mobilenet_pipeline.workspace.files import whole


@dataclass(frozen=True)
class State:
    """The state of a training of `length` steps, after `step` of them.

    `arrays` are weights and optimizer state. `totals` are the sums of loss and correct answers in the current epoch,
    and `seconds` is its wall time so far. `history` has the rows of the finished epochs. `cpu_seconds` is the CPU time
    of the whole training so far.
    """

    step: int
    length: int
    costs: Costs
    arrays: dict[str, np.ndarray]
    totals: tuple[float, float]
    seconds: float
    history: list[dict[str, Any]]
    cpu_seconds: float

    @property
    def digest(self) -> str:
        """SHA-256, hex, of step and arrays. Workers compare it to agree on the state."""
        return hashlib.sha256(b"".join([str(self.step).encode(), *map(bytes, self.arrays.values())])).hexdigest()


def save(path: Path, identity: Mapping[str, Any], state: State) -> None:
    """Write the state atomically.

    `identity` identifies the training. Raises OSError, naming the file, if it cannot be written; the state that was
    there stays unchanged.
    """
    document = {
        "identity": dict(identity),
        "step": state.step,
        "length": state.length,
        "costs": asdict(state.costs),
        "totals": state.totals,
        "seconds": state.seconds,
        "history": state.history,
        "cpu_seconds": state.cpu_seconds,
    }
    with _replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, document=np.array(json.dumps(document)), **state.arrays)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, identity: Mapping[str, Any]) -> State | None:
    """Return the saved state, None if there is none for this training.

    A damaged file or another training's state counts as none, with a line in the log. Raises OSError if the file exists
    and disk or permissions prevent reading it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "it has the state of a training: make it readable, or delete it to start afresh"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            document = json.loads(str(archive["document"]))
            if document["identity"] != json.loads(json.dumps(dict(identity))):
                print(
                    f"{path} is of other code, settings, data, processor or devices; the training starts afresh",
                    flush=True,
                )
                return None
            arrays = {name: archive[name] for name in archive.files if name != "document"}
        totals = float(document["totals"][0]), float(document["totals"][1])
        step, length, costs = int(document["step"]), int(document["length"]), Costs(**document["costs"])
        seconds, cpu_seconds = float(document["seconds"]), float(document["cpu_seconds"])
        return State(step, length, costs, arrays, totals, seconds, document["history"], cpu_seconds)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and JSON raise different errors for a damaged file
        print(f"{path} cannot be read ({error}); the training starts afresh", flush=True)
        return None


def keep(path: Path, content: bytes) -> None:
    """Write the content of a saved state; a state of another training that is there gets another name.

    Raises OSError as `save` does.
    """
    with _replacing(path) as partial:
        with partial.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        if path.exists() and identity_of(path) != identity_of(partial):
            set_aside(path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file that replaces the state after the `with` body. Raises OSError as `save` does."""
    for leftover in path.parent.glob(f".{path.name}.*"):  # a process was killed while it wrote
        leftover.unlink(missing_ok=True)
    try:
        with whole(path) as partial:
            yield partial
    except OSError as error:
        remedy = "make it writable and run again: the training continues from the last saved state"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from None


def identity_of(path: Path) -> dict[str, Any] | None:
    """Return what identifies the training of a saved state, None for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            identity: dict[str, Any] = json.loads(str(archive["document"]))["identity"]
            return identity
    except Exception:  # as in `load`
        return None


def set_aside(path: Path) -> None:
    """Rename an unused state, so that this training does not overwrite it.

    The state may be hours of work. Raises OSError if it cannot be renamed.
    """
    if path.exists():
        path.replace(other(path))
        print(
            f"{path} was renamed to {other(path)} until this training is done; to continue that training instead, undo "
            f"the changes and rename the file to {path.name}",
            flush=True,
        )


def other(path: Path) -> Path:
    """Return the path for an unused state."""
    return path.with_stem(f"{path.stem}.other")
