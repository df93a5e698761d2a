"""What a run reached, as results.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from mobilenet_pipeline import processor, provenance, results
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.provenance import ProvenanceError


def row(name: str, outcome: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "wall_seconds": seconds, "cpu_seconds": 2 * seconds}


def test_a_stage_that_ran_has_its_own_times():
    assert results.merge_stages([row("a", "ran", 9.0)], [row("a", "ran", 1.0)]) == [row("a", "ran", 1.0)]


def test_a_stage_that_had_nothing_to_do_keeps_the_times_of_when_it_ran():
    assert results.merge_stages([row("a", "ran", 9.0)], [row("a", "unchanged", 1.0)]) == [row("a", "unchanged", 9.0)]


def test_times_that_nobody_took_are_left_open():
    (merged,) = results.merge_stages([], [row("a", "restored", 1.0)])
    assert merged == {"name": "a", "outcome": "restored", "wall_seconds": None, "cpu_seconds": None}


def test_the_machine_is_described():
    machine = provenance.describe_machine()
    assert {*machine} >= {"cpu", "cores", "memory_gib", "os", "python"}
    assert machine["cores"] >= 1
    assert machine["cpu"]


@pytest.mark.parametrize(
    ("line", "has"), [("flags\t\t: fpu avx512f avx512_bf16", True), ("flags\t\t: fpu avx2", False)]
)
def test_a_processor_with_bfloat16_is_told_from_one_without(monkeypatch, line, has):
    monkeypatch.setattr(processor, "_cpuinfo", lambda: ["model name\t: One", line])
    assert provenance.describe_machine()["bfloat16"] is has


def test_results_hold_figures_cost_and_verdict(workspace: Path):
    recipe = load_recipe("digits")
    scores = {"rows": 10, "loss": 0.25, "accuracy": 0.9}
    facts = {"cpu_minutes": 2.0, "wall_minutes": 1.0, "parameters": 5, "multiply_adds": 7, "weights": "none"}
    for name in ("scratch", "pretrained"):
        put(workspace / f"metrics/digits/{name}.json", {"test": scores, "validation": scores | {"loss": 0.5}})
        put(workspace / f"models/digits/{name}/training.json", facts | {"git_commit": "c" * 40})
    verdict = {"data_digest": "d" * 64, "leaves": {"champion": "3"}, "reason": "Better."}
    path = results.write_results(recipe, verdict, [row("a", "ran", 1.0)])
    document = json.loads(path.read_text())
    assert (
        document["candidates"]["scratch"].items() >= {"test_accuracy": 0.9, "test_loss": 0.25, "val_loss": 0.5}.items()
    )
    assert (document["champion"], document["verdict_reason"]) == ("3", "Better.")
    assert document["command"] == "mobilenet-pipeline run --recipe digits"
    assert document["stages"] == [row("a", "ran", 1.0)]


def test_a_missing_figure_is_named(workspace: Path):
    with pytest.raises(ProvenanceError, match=r"metrics/digits/scratch\.json"):
        results.write_results(load_recipe("digits"), {}, [])


def put(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
