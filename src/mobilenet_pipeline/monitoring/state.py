"""The state of a recipe's monitoring in a file, so that it survives a restart."""

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.monitoring.alarms import State
from mobilenet_pipeline.workspace import files, paths
from mobilenet_pipeline.workspace.paths import HERE

FORMAT = 1


class StateError(ValueError):
    """The state of the monitoring is damaged."""


def folder(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the folder of the recipe's monitoring."""
    return paths.report_folder(recipe, workspace) / "monitoring"


def path_of(recipe: Recipe, workspace: Path = HERE) -> Path:
    """Return the path of the state."""
    return folder(recipe, workspace) / "state.json"


def read(recipe: Recipe, workspace: Path = HERE) -> State | None:
    """Return the state, None if there is none yet. Raises StateError, naming the file, if it is damaged."""
    path = path_of(recipe, workspace)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format") != FORMAT:
            raise ValueError("it is from another version of this project")
        return TypeAdapter(State).validate_python(document)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise StateError(
            f"{path} is damaged ({reason}); delete it, and the monitoring starts again with the record of answers"
        ) from None


def write(recipe: Recipe, state: State, workspace: Path = HERE) -> None:
    """Replace the state."""
    files.write_json(path_of(recipe, workspace), {"format": FORMAT, **asdict(state)})
