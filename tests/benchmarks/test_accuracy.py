import argparse
from pathlib import Path

import accuracy
import pytest


def test_an_unfinished_training_of_another_commit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(accuracy, "CLONES", tmp_path)
    for commit, left in (("aaaaaaa", "checkpoint.npz"), ("bbbbbbb", "model.keras")):
        folder = tmp_path / f"cifar10-scratch-0-{commit}" / "models" / "cifar10" / "scratch"
        folder.mkdir(parents=True)
        (folder / left).touch()
    assert accuracy.unfinished("cifar10", "scratch", 0) == ["aaaaaaa"]
    assert accuracy.unfinished("cifar10", "scratch", 1) == []


@pytest.mark.parametrize(("threads", "prefix"), [(None, ""), ("2", "TF_NUM_INTRAOP_THREADS=2 ")])
def test_the_command_of_a_row_sets_its_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, prefix: str
):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", threads)
    chosen = argparse.Namespace(recipe="cifar10_90m", candidate="scratch", seeds=[0, 1])
    found = [{"test_accuracy": 0.9, "cpu_minutes": 20.0, "git_commit": "a" * 40}]
    expected = f"{prefix}python benchmarks/accuracy.py cifar10_90m scratch --seeds 0 1"
    assert accuracy.summarise(chosen, found)["command"] == expected
