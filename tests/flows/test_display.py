"""A run as people at a terminal, and in a log, see it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.display import Display, candidate_table, print_summary, reasons
from mobilenet_pipeline import layout
from mobilenet_pipeline.config import load_recipe

EPOCH = "█░ epoch 1/2 loss 0.5 [x] 1.2 s, 0:07 left"


def show(terminal: bool, *outcomes: str) -> str:
    """What the display of one step prints, tried as often as there are outcomes."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with Display(console, ["train@digits-scratch", "judge"]) as display:
        for outcome in outcomes:
            display.begin("train@digits-scratch")
            display.hear("train@digits-scratch", "Updating lock file 'dvc.lock'")
            display.hear("train@digits-scratch", EPOCH)
            display.end("train@digits-scratch", outcome)
    return console.file.getvalue()


def test_a_terminal_shows_step_bar_and_time_left():
    shown = show(True, "ran")
    assert "train@digits-scratch" in shown
    assert "epoch 1/2 loss 0.5 [x] 1.2 s, 0:07 left" in shown
    assert "━" in shown
    assert "judge" not in shown


@pytest.mark.parametrize(
    ("outcome", "told"), [("unchanged", "nothing to do"), ("restored", "restored from DVC's cache"), ("failed", "✗")]
)
def test_a_terminal_shows_how_a_step_ended(outcome: str, told: str):
    assert told in show(True, outcome)


def test_a_step_that_is_tried_again_keeps_its_row():
    assert "✓" in show(True, "failed", "ran")


def test_a_log_has_plain_lines_without_what_dvc_says():
    lines = show(False, "ran").splitlines()
    assert lines[:2] == ["train@digits-scratch …", f"    {EPOCH}"]
    assert lines[2].startswith("train@digits-scratch ran, ")
    assert len(lines) == 3


def test_the_table_of_candidates_fits_80_columns():
    row = {"val_accuracy": 0.9, "val_loss": 0.1, "test_accuracy": 1.0, "test_loss": 0.1, "cpu_minutes": 123.4}
    candidates = {"pretrained": row | {"parameters": 4_253_864}}
    console = Console(file=io.StringIO(), width=80)
    console.print(candidate_table({"recipe": "cifar10", "candidates": candidates}))
    printed = console.file.getvalue()
    assert "100.00%" in printed
    assert "4,253,864" in printed
    assert "…" not in printed


def test_the_last_verdict_is_told_where_the_run_reached_none():
    verdict = {"reason": "It is better.", "checks": [{"passed": True, "sentence": "98 % of the images."}]}
    assert reasons(verdict, "It is better. Version 3.") == ["✓ 98 % of the images."]
    assert reasons(verdict, "Nothing changed.") == ["The last verdict: It is better.", "✓ 98 % of the images."]


def test_a_reason_with_brackets_is_printed_as_it_was_given(tmp_path: Path):
    recipe = load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")
    verdict = {
        "reason": "It is better.",
        "checks": [{"passed": False, "sentence": "taken out: slow, see [/var/log/x]"}],
    }
    layout.write_json(layout.verdict_path(recipe, tmp_path), verdict)
    console = Console(file=io.StringIO(), width=100)
    print_summary(recipe, "It waits: [see ticket].", console, tmp_path)
    assert "It waits: [see ticket]." in console.file.getvalue()
    assert "✗ taken out: slow, see [/var/log/x]" in console.file.getvalue()


def test_serving_is_proposed_only_where_there_is_a_champion(tmp_path: Path):
    recipe = load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")
    verdict = {"reason": "It is better.", "checks": [], "leaves": {"champion": "2"}}
    layout.write_json(layout.verdict_path(recipe, tmp_path), verdict)
    console = Console(file=io.StringIO(), width=100)
    print_summary(recipe, "It waits for approval.", console, tmp_path)
    assert "make serve" not in console.file.getvalue()
