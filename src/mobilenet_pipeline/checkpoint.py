"""A training's state in one file, so that it goes on where it was after its process died."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.budget import Costs
from mobilenet_pipeline.layout import whole


@dataclass(frozen=True)
class State:
    """Everything that the rest of a training of `length` steps follows from: `step` are done, `arrays` hold weights.

    `totals` are the running sums of the epoch that `step` is in, `seconds` its wall time so far, `history` the rows of
    the epochs before it, and `cpu_seconds` what all of this took.
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
        """SHA-256, hex, of the step and the arrays: equal where the same training would go on."""
        return hashlib.sha256(b"".join([str(self.step).encode(), *map(bytes, self.arrays.values())])).hexdigest()


def save(path: Path, identity: Mapping[str, Any], state: State) -> None:
    """Write the state, whole or not at all. `identity` says of which training it is.

    Raises OSError, which names the file, where that cannot be done; the state that was there stays.
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
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    try:
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, document=np.array(json.dumps(document)), **state.arrays)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "run again once it can be written: the training goes on from the state that was kept there before"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from None


def load(path: Path, identity: Mapping[str, Any]) -> State | None:
    """The state in the file; None where there is none, or one of another training, or a damaged one.

    Raises OSError where the file is there and its disk or its permissions do not let it be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "a training's state is in it: make it readable, or delete it to start afresh"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            document = json.loads(str(archive["document"]))
            if document["identity"] != json.loads(json.dumps(dict(identity))):
                print(
                    f"{path} is of other code, knobs, data, processor or devices; the training starts afresh",
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
    except Exception as error:  # zipfile, zlib, NumPy and JSON each have their own for a damaged file
        print(f"{path} cannot be read ({error}); the training starts afresh", flush=True)
        return None


def set_aside(path: Path) -> None:
    """Keep a state that was not taken up, which may be hours of work, from being written over. Raises OSError."""
    if path.exists():
        path.replace(other(path))
        print(
            f"what was in {path} is kept as {other(path)} until this training is done: to go on from it, put back what "
            f"was changed, and name it {path.name} again",
            flush=True,
        )


def other(path: Path) -> Path:
    """Where a state that was not taken up is kept."""
    return path.with_stem(f"{path.stem}.other")
