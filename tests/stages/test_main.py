"""What happens around every stage's own work."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.stages import __main__, recipe


@pytest.fixture
def stage(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """Call it with the words of a command line; the stage itself does nothing."""
    monkeypatch.setattr(__main__, "import_module", lambda name: SimpleNamespace(main=lambda *names: None))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.parent))

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["stages", *words])
        __main__.main()

    return run


def edit(workspace: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in params.yaml."""
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_training_without_a_commit_says_so_first(stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage("train", "digits", "scratch")
    assert "warning: no commit will be recorded for this model: " in capsys.readouterr().out


def test_a_stage_refuses_settings_that_dvc_does_not_see(stage, workspace: Path, capsys) -> None:
    recipe.main(load_recipe("seed"))
    stage("train", "seed", "scratch")
    edit(workspace, "epochs: 11", "epochs: 12")
    with pytest.raises(SystemExit):
        stage("train", "seed", "scratch")
    assert "write it again: dvc repro recipes/dvc.yaml:recipe@seed" in capsys.readouterr().err


def test_digits_takes_no_base(stage, workspace: Path, capsys) -> None:
    edit(workspace, "  digits:\n", "  digits:\n    base: seed\n")
    with pytest.raises(SystemExit):
        stage("ingest", "digits")
    assert "recipes.digits.base is 'seed', which the stages of digits do not look at" in capsys.readouterr().err
