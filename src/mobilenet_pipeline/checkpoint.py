"""A training's state in one file, so that it goes on where it was after its process died."""

import json
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


def save(path: Path, identity: Mapping[str, Any], state: State) -> None:
    """Write the state, whole or not at all. `identity` says of which training it is."""
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
    with whole(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, document=np.array(json.dumps(document)), **state.arrays)


def load(path: Path, identity: Mapping[str, Any]) -> State | None:
    """The state in the file; None where there is none, or one of another training, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
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
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib, NumPy and JSON each have their own for a damaged file
        print(f"{path} cannot be read ({error}); the training starts afresh", flush=True)
        return None
