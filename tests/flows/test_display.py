"""A run as people see it at a terminal and in a log."""

import io
import re

import pytest
from rich.console import Console

from flows.display import Display

EPOCH = "█░ epoch 1/2 loss 0.5 [x] 1.2 s, 0:07 left"


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


def test_no_color_leaves_a_terminal_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*\b(3|4)\d[;m]")
    assert colours.search(show(True, "ran"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search(show(True, "ran"))
