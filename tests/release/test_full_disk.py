"""Decisions on a full disk, a real one: a sentence with the path, and the last good state stays."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import Make, Packaging, Runs

from mobilenet_pipeline import cli
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases, versions
from mobilenet_pipeline.registry.versions import number_of
from mobilenet_pipeline.release import bento, judging, promotion
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.system import failures
from mobilenet_pipeline.workspace import paths

PACKAGE = bento.package


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (disk / "ballast").write_bytes(bytes(2**22))


@pytest.fixture
def champions(runs: Runs) -> None:
    """Version 2 was promoted, then version 4."""
    runs((181, 183), (182, 195))


def champion(recipe: Recipe) -> str | None:
    return number_of(aliases.with_alias(recipe.registered_model, "champion"))


def test_a_rollback_names_the_full_disk_of_the_registry(
    champions: None, recipe: Recipe, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile("mlflow.db", disk / "mlflow.db")
    fill(disk)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    assert cli.main(["rollback", "--reason", "cats look odd"]) == 1
    assert capsys.readouterr().err.startswith(f"error: no space is left on the disk of {disk}")
    (disk / "ballast").unlink()
    assert champion(recipe) == "4"


def test_a_rollback_names_the_full_disk_of_the_bentos(
    champions: None,
    recipe: Recipe,
    disk: Path,
    packaging: Packaging,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(disk)
    monkeypatch.setenv("BENTOML_HOME", str(disk))
    monkeypatch.setattr(bento, "package", PACKAGE)
    assert cli.main(["rollback", "--reason", "cats look odd"]) == 1
    assert capsys.readouterr().err.startswith(f"error: no space is left on the disk of {disk}")
    assert (champion(recipe), packaging.must_be_live(recipe).versions["champion"]) == ("4", "4")


def test_a_decision_for_which_the_history_has_no_room_is_not_applied(
    champions: None, recipe: Recipe, disk: Path, packaging: Packaging, capsys: pytest.CaptureFixture[str]
) -> None:
    records = paths.history_path(recipe).parent
    shutil.move(records, disk)
    records.symlink_to(disk / records.name)
    fill(disk)
    for words in (["rollback"], ["reject", "3"]):
        assert cli.main([*words, "--reason", "cats look odd"]) == 1
        assert capsys.readouterr().err.startswith(
            f"error: no space is left on the disk of {paths.history_path(recipe)}"
        )
    assert (champion(recipe), packaging.must_be_live(recipe).versions["champion"]) == ("4", "4")
    assert [versions.find(recipe.registered_model, number).withdrawn for number in ("3", "4")] == [None, None]


def test_a_promotion_leaves_the_champion_on_a_full_disk(
    runs: Runs, make: Make, recipe: Recipe, disk: Path, packaging: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 183))
    make("scratch", right=182)
    make("pretrained", right=195)
    fill(disk)
    monkeypatch.setenv("BENTOML_HOME", str(disk))
    monkeypatch.setattr(bento, "package", PACKAGE)
    with pytest.raises(Exception) as full:  # noqa: PT011
        promotion.promote(recipe, judging.judge(recipe))
    sentence = failures.explain(full.value, runner.EXPECTED)
    assert sentence is not None
    assert sentence.startswith(f"no space is left on the disk of {disk}")
    assert (champion(recipe), packaging.must_be_live(recipe).versions["champion"]) == ("2", "2")
