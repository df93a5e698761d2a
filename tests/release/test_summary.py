"""What a run prints at its end."""

import io
from pathlib import Path

import pytest
from planted_predictions import accurate, decide, verdict_on
from rich.console import Console

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.gate.checks import Check
from mobilenet_pipeline.release.summary import candidate_table, print_summary, reasons
from mobilenet_pipeline.workspace import files, paths

RECIPE = load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")
ROW = {"val_accuracy": 0.9, "val_loss": 0.1, "test_accuracy": 1.0, "test_loss": 0.1, "cpu_minutes": 123.4}
RESULTS = {"recipe": "digits", "candidates": {"pretrained": ROW | {"parameters": 4_253_864}}, "champion": None}
DECISION = decide(accurate(150), accurate(160), None)


def check(passed: bool, sentence: str) -> Check:
    return Check("accuracy", "pretrained", passed, 0.98, 0.9, sentence)


def summarise(workspace: Path, sentence: str) -> str:
    """Return the summary of the workspace's last verdict."""
    console = Console(file=io.StringIO(), width=100)
    print_summary(RECIPE, sentence, console, workspace)
    return console.file.getvalue()


def test_the_table_of_candidates_fits_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(candidate_table(RESULTS))
    printed = console.file.getvalue()
    assert "100.00%" in printed
    assert "4,253,864" in printed
    assert "…" not in printed


def test_a_run_without_a_verdict_of_its_own_shows_the_last() -> None:
    verdict = verdict_on(DECISION, reason="It is better.", checks=[check(True, "98 % of the images.")])
    assert reasons(verdict, "It is better. Version 3.") == ["✓ 98 % of the images."]
    assert reasons(verdict, "Nothing changed.") == ["The last verdict: It is better.", "✓ 98 % of the images."]


def test_brackets_are_printed_as_they_were_given(tmp_path: Path) -> None:
    verdict = verdict_on(DECISION, checks=[check(False, "withdrawn: slow, see [/var/log/x]")])
    files.write_text(paths.verdict_path(RECIPE, tmp_path), verdict.to_json())
    printed = summarise(tmp_path, "It waits: [see ticket].")
    assert "It waits: [see ticket]." in printed
    assert "✗ withdrawn: slow, see [/var/log/x]" in printed


@pytest.mark.parametrize(("champion", "proposed"), [(None, False), ("2", True)])
def test_serving_is_proposed_only_with_a_champion(tmp_path: Path, champion: str | None, proposed: bool) -> None:
    files.write_text(paths.verdict_path(RECIPE, tmp_path), verdict_on(DECISION).to_json())
    files.write_json(paths.report_folder(RECIPE, tmp_path) / "results.json", RESULTS | {"champion": champion})
    assert ("make serve" in summarise(tmp_path, "It waits for approval.")) is proposed


def test_a_summary_in_a_file_has_no_escape_codes(tmp_path: Path) -> None:
    files.write_json(paths.report_folder(RECIPE, tmp_path) / "results.json", RESULTS)
    assert "\x1b" not in summarise(tmp_path, "It is better.")
