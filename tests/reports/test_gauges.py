"""The gauges for Prometheus, read back with its client's parser."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.reports import gauges
from mobilenet_pipeline.workspace import files, history
from mobilenet_pipeline.workspace.history import Event

WINNER = "a" * 64
VERDICT = {"promote": True, "winner": "scratch", "artefacts": {"scratch": WINNER, "pretrained": "c" * 64}}


def event(what: history.What, version: str, at: str, after: str | None = None) -> Event:
    return Event(what, version, "ann", "", None, after or version, "r" * 32, 0.93, at=at)


def values(path: Path) -> dict[tuple[str, ...], float]:
    """Return {(name, value of the label beside the recipe): value}."""
    return {
        (sample.name.removeprefix("mobilenet_pipeline_"), *({*sample.labels.values()} - {"digits"})): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_a_recipe_without_a_run_has_no_gauges(recipe: Recipe, workspace: Path) -> None:
    assert values(gauges.write(recipe)) == {}


def test_a_failure_does_not_forget_the_last_success(recipe: Recipe, workspace: Path) -> None:
    gauges.note_run(recipe, "succeeded", 90.0)
    gauges.note_run(recipe, "failed", 5.0)
    read = values(gauges.write(recipe))
    assert read[("run_duration_seconds", "succeeded")] == 90.0
    assert read[("run_timestamp_seconds", "failed")] >= read[("run_timestamp_seconds", "succeeded")]


def test_the_champion_is_that_of_the_last_decision(recipe: Recipe, workspace: Path) -> None:
    for each in (("promoted", "1", "2026-11-01"), ("promoted", "2", "2026-11-02"), ("rolled back", "1", "2026-11-03")):
        history.append(recipe, event(each[0], each[1], f"{each[2]}T00:00:00+00:00"))  # type: ignore[arg-type]
    read = values(gauges.write(recipe))
    assert read[("champion_info", "1")] == 1
    assert read[("champion_since_timestamp_seconds",)] == 1793664000
    assert read[("champion_test_accuracy_ratio",)] == 0.93


def test_a_champion_that_another_workspace_promoted_has_no_time(recipe: Recipe, workspace: Path) -> None:
    history.append(recipe, event("rejected", "3", "2026-11-01T00:00:00+00:00", after="2"))
    assert {name: value for name, value in values(gauges.write(recipe)).items() if name[0].startswith("champion")} == {
        ("champion_info", "2"): 1
    }


@pytest.mark.parametrize(
    ("decided", "waits"), [({}, 1), ({"artefact": WINNER}, 0), ({"withdraws": WINNER}, 0), ({"artefact": "b" * 64}, 1)]
)
def test_a_version_waits_until_somebody_has_decided_on_it(
    recipe: Recipe, workspace: Path, decided: dict[str, str], waits: int
) -> None:
    files.write_json(Path("reports/digits/verdict.json"), VERDICT)
    earlier = event("promoted", "3", "2020-01-01T00:00:00+00:00")  # the clock was wrong
    history.append(recipe, replace(earlier, **decided))  # type: ignore[arg-type]
    assert values(gauges.write(recipe))[("waiting_for_approval",)] == waits


def test_open_drift_has_its_cause(recipe: Recipe, workspace: Path) -> None:
    document = {"at": "2026-11-02T10:00:00+00:00", "drift": [{"cause": "sharpness"}]}
    files.write_json(Path("reports/digits/monitoring.json"), document)
    assert values(gauges.write(recipe))[("drift_open", "sharpness")] == 1


def test_the_setting_names_the_folder(recipe: Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gauges.SETTING, str(workspace / "textfiles"))
    gauges.write(recipe)
    assert [path.name for path in (workspace / "textfiles").iterdir()] == ["mobilenet_pipeline_digits.prom"]


def test_a_damaged_document_leaves_its_gauges_out(recipe: Recipe, workspace: Path) -> None:
    gauges.note_run(recipe, "succeeded", 1.0)
    Path("reports/digits/verdict.json").write_text("{")
    assert ("run_duration_seconds", "succeeded") in values(gauges.write(recipe))


def test_a_verdict_without_artefacts_waits_for_nobody(recipe: Recipe, workspace: Path) -> None:
    files.write_json(Path("reports/digits/verdict.json"), {"promote": True, "winner": "scratch"})
    assert values(gauges.write(recipe))[("waiting_for_approval",)] == 0
