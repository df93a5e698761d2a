"""A run as people see it at a terminal and in a log."""

import io
import re
from pathlib import Path

import pytest
from planted_predictions import accurate, decide, verdict_on
from rich.console import Console

from flows.display import Display, candidate_table, print_summary, reasons
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.gate.checks import Check
from mobilenet_pipeline.workspace import files, paths

RECIPE = load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")
EPOCH = "█░ epoch 1/2 loss 0.5 [x] 1.2 s, 0:07 left"
ROW = {"val_accuracy": 0.9, "val_loss": 0.1, "test_accuracy": 1.0, "test_loss": 0.1, "cpu_minutes": 123.4}
RESULTS = {"recipe": "digits", "candidates": {"pretrained": ROW | {"parameters": 4_253_864}}, "champion": None}
DECISION = decide(accurate(150), accurate(160), None)


def check(passed: bool, sentence: str) -> Check:
    return Check("accuracy", "pretrained", passed, 0.98, 0.9, sentence)


def on_terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=100)


def show(terminal: bool, *outcomes: str) -> str:
    """Return what the display of one step prints that ends with these outcomes, one after the other."""
    console = on_terminal() if terminal else Console(file=io.StringIO(), width=100)
    with Display(console, ["train@digits-scratch", "judge"]) as display:
        for outcome in outcomes:
            display.begin("train@digits-scratch")
            display.hear("train@digits-scratch", EPOCH)
            display.end("train@digits-scratch", outcome)
    return console.file.getvalue()


def summarise(workspace: Path, sentence: str) -> str:
    """Return the summary of the workspace's last verdict."""
    console = Console(file=io.StringIO(), width=100)
    print_summary(RECIPE, sentence, console, workspace)
    return console.file.getvalue()


def test_a_terminal_shows_step_bar_and_time_left() -> None:
    shown = show(True, "ran")
    assert "train@digits-scratch" in shown
    assert "epoch 1/2 loss 0.5 [x] 1.2 s, 0:07 left" in shown
    assert "━" in shown
    assert "judge" not in shown


@pytest.mark.parametrize(
    ("outcome", "sign"), [("unchanged", "nothing to do"), ("restored", "restored from DVC's cache"), ("failed", "✗")]
)
def test_a_terminal_shows_how_a_step_ended(outcome: str, sign: str) -> None:
    assert sign in show(True, outcome)


def test_a_repeated_step_keeps_its_row() -> None:
    assert "✓" in show(True, "failed", "ran")


def test_a_log_has_plain_lines() -> None:
    lines = show(False, "ran").splitlines()
    assert lines[:2] == ["train@digits-scratch …", f"    {EPOCH}"]
    assert lines[2].startswith("train@digits-scratch ran, ")
    assert len(lines) == 3


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


def test_no_color_leaves_a_terminal_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*\b(3|4)\d[;m]")
    assert colours.search(show(True, "ran"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search(show(True, "ran"))
