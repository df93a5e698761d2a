"""The history of a registered model: lines that are added, and show when they are changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import history, paths
from mobilenet_pipeline.workspace.history import Event, HistoryError
from mobilenet_pipeline.workspace.records import RecordError

FIRST = Event("promoted", "2", "the gate", "It is the first.", None, "2", "r", 0.9)
SECOND = Event("rejected", "3", "ann", "odd", "2", "2", "s", 0.8)


@pytest.fixture
def record(recipe: Recipe, tmp_path: Path) -> Path:
    """A history of two events."""
    for event in (FIRST, SECOND):
        history.append(recipe, event, tmp_path)
    return paths.history_path(recipe, tmp_path)


def test_events_are_read_oldest_first(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    assert history.read(recipe, tmp_path) == [FIRST, SECOND]


def test_an_opinion_does_not_change_the_champion(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    assert history.champions(recipe, tmp_path) == [FIRST]


def test_a_recipe_without_a_history_has_no_events(recipe: Recipe, tmp_path: Path) -> None:
    assert history.read(recipe, tmp_path) == []


def test_an_empty_file_is_a_history_without_events(recipe: Recipe, tmp_path: Path) -> None:
    record = paths.history_path(recipe, tmp_path)
    record.parent.mkdir(parents=True)
    record.touch()  # a full disk has left it
    history.append(recipe, FIRST, tmp_path)
    assert history.read(recipe, tmp_path) == [FIRST]


def test_a_file_that_is_not_utf_8_is_named(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    record.write_bytes(record.read_bytes().replace(b"odd", b"\xf6dd"))
    with pytest.raises(RecordError, match=r"history\.jsonl is not text in UTF-8"):
        history.read(recipe, tmp_path)


def test_a_changed_line_is_found(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    record.write_text(record.read_text().replace('"before": null', '"before": "1"'))
    with pytest.raises(HistoryError, match="line 2 does not follow line 1"):
        history.read(recipe, tmp_path)


def test_a_removed_line_is_found(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    record.write_text(record.read_text().splitlines(keepends=True)[1])
    with pytest.raises(HistoryError, match="what was before line 1 was changed or removed"):
        history.read(recipe, tmp_path)


def test_a_damaged_line_is_named(recipe: Recipe, record: Path, tmp_path: Path) -> None:
    record.write_text(f'{record.read_text()}{{"what": "prom')
    with pytest.raises(HistoryError, match="line 3 is damaged"):
        history.read(recipe, tmp_path)


def test_a_clock_that_was_set_back_changes_no_order(recipe: Recipe, tmp_path: Path) -> None:
    for version, at in (("2", "2026-11-02T00:00:00+00:00"), ("3", "2026-11-01T00:00:00+00:00")):
        history.append(recipe, replace(FIRST, version=version, after=version, at=at), tmp_path)
    assert [event.version for event in history.champions(recipe, tmp_path)] == ["2", "3"]
