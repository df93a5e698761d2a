"""The state of the monitoring in its file."""

from pathlib import Path

import pytest

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.monitoring import state
from mobilenet_pipeline.monitoring.alarms import Alert, State, Window

FULL = State(
    "3",
    {"short": 900.0},
    [Window("short", 0, 900, 20, {"gradient": "images"})],
    [Alert("a", "images", "3", 900, ["short"], {"gradient": "…"})],
)


def test_a_state_survives_a_restart(recipe: Recipe, tmp_path: Path) -> None:
    state.write(recipe, FULL, tmp_path)
    assert state.read(recipe, tmp_path) == FULL


def test_there_is_no_state_at_first(recipe: Recipe, tmp_path: Path) -> None:
    assert state.read(recipe, tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "version": "3", "since": [1]}'])
def test_a_damaged_state_is_named_with_the_remedy(recipe: Recipe, tmp_path: Path, text: str) -> None:
    state.folder(recipe, tmp_path).mkdir(parents=True)
    state.path_of(recipe, tmp_path).write_text(text)
    with pytest.raises(state.StateError, match=r"state\.json is damaged \(.+\); delete it, and"):
        state.read(recipe, tmp_path)
