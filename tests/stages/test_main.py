"""What happens around every stage's own work."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.stages import __main__, recipe


@pytest.fixture
def stage(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """Call it with the words of a command line; the stage itself only does `work`."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.parent))

    def run(*words: str, work: Callable[[], object] = lambda: None) -> None:
        monkeypatch.setattr(__main__, "import_module", lambda name: SimpleNamespace(main=lambda *names: work()))
        monkeypatch.setattr(sys, "argv", ["stages", *words])
        __main__.main()

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


def edit(workspace: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in params.yaml."""
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_training_without_a_commit_says_so_first(stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage("train", "digits", "scratch")
    assert "warning: no commit will be recorded for this model: " in capsys.readouterr().out


def test_a_stage_that_gets_sigterm_removes_its_temporary_files(stage, workspace: Path) -> None:
    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="left-", dir=workspace):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # to the whole group, and again by the parent

    with pytest.raises(SystemExit) as ended:
        stage("ingest", "digits", work=work)
    assert ended.value.code == 143
    assert not list(workspace.glob("left-*"))


def test_a_training_keeps_the_handler_of_sigterm(stage) -> None:
    handlers = [signal.getsignal(signal.SIGTERM)]
    stage("train", "digits", "scratch", work=lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    assert handlers[0] == handlers[1]


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
