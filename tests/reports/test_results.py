"""What a run reached, as results.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from planted_predictions import accurate, decide, verdict_on

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.gate.verdict import Aliases
from mobilenet_pipeline.reports import costs, results
from mobilenet_pipeline.workspace.files import WorkspaceError, write_json

VERDICT = verdict_on(
    decide(accurate(150), accurate(160), None), leaves=Aliases("3", None), reason="Better.", data_digest="d" * 64
)


def row(name: str, outcome: str, seconds: float) -> dict[str, Any]:
    unknown = dict.fromkeys(costs.MEASURES)
    return unknown | {"name": name, "outcome": outcome, "wall_seconds": seconds, "cpu_seconds": 2 * seconds}


def test_a_stage_that_ran_has_its_own_times() -> None:
    assert results.merge_stages({"a": row("a", "ran", 9.0)}, [row("a", "ran", 1.0)]) == [row("a", "ran", 1.0)]


def test_an_unchanged_stage_keeps_the_times_of_its_last_run() -> None:
    merged = results.merge_stages({"a": row("a", "ran", 9.0)}, [row("a", "unchanged", 1.0)])
    assert merged == [row("a", "unchanged", 9.0)]


def test_unknown_times_are_none() -> None:
    (merged,) = results.merge_stages({}, [row("a", "restored", 1.0)])
    assert merged == {"name": "a", "outcome": "restored", **dict.fromkeys(costs.MEASURES)}


def evaluated(workspace: Path) -> None:
    """Write what two evaluations and trainings leave."""
    scores = {"rows": 10, "loss": 0.25, "accuracy": 0.9}
    facts = {"cpu_minutes": 2.0, "wall_minutes": 1.0, "parameters": 5, "multiply_adds": 7, "weights": "none"}
    for name in ("scratch", "pretrained"):
        metrics = {"test": scores, "validation": scores | {"loss": 0.5}}
        metrics |= {"corruptions": {"noise 1": 0.5, "blur 1": 0.75}}
        write_json(workspace / f"metrics/digits/{name}.json", metrics)
        write_json(workspace / f"models/digits/{name}/training.json", facts | {"git_commit": "c" * 40})


def test_results_have_figures_costs_and_verdict(workspace: Path) -> None:
    evaluated(workspace)
    recipe, stages = load_recipe("digits"), [row("a", "ran", 1.0), row("b", "unchanged", 0.0)]
    costs.note(recipe, row("b", "ran", 4.0), None)  # in a run that failed later
    document = json.loads(results.write_results(recipe, VERDICT, stages).read_text())
    figures = {"test_accuracy": 0.9, "test_loss": 0.25, "val_loss": 0.5, "corrupted_accuracy": 0.625}
    assert document["candidates"]["scratch"].items() >= figures.items()
    assert (document["champion"], document["verdict_reason"]) == ("3", "Better.")
    assert document["data_digest"] == "d" * 64
    assert document["command"] == "mobilenet-pipeline run --recipe digits"
    assert document["stages"] == [row("a", "ran", 1.0), row("b", "unchanged", 4.0)]


def test_a_missing_file_is_named(workspace: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"metrics/digits/scratch\.json"):
        results.write_results(load_recipe("digits"), VERDICT, [])


def test_damaged_results_are_replaced(workspace: Path) -> None:
    evaluated(workspace)
    recipe = load_recipe("digits")
    path = results.results_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")  # a power loss
    path.with_name("index.html").touch()
    assert not results.reported(recipe)
    results.write_results(recipe, VERDICT, [])
    assert results.reported(recipe)
