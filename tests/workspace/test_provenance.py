"""Where results come from, with and without git and DVC."""

import subprocess
from pathlib import Path

import pytest

from mobilenet_pipeline.workspace import provenance

LOCK = "stages: {ingest@digits: {outs: [{path: images.npy, md5: a}, {path: labels.npy, md5: b}]}}"


def git(folder: Path, *arguments: str) -> str:
    """Run git with an identity."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit of params.yaml."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "params.yaml").write_text("recipes: {}")
    git(tmp_path, "add", "params.yaml")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_repository_gives_its_commit(repository: Path) -> None:
    assert provenance.git_commit(repository) == (git(repository, "rev-parse", "HEAD"), False)


def test_an_edit_makes_the_commit_dirty(repository: Path) -> None:
    (repository / "params.yaml").write_text("recipes: {digits: {}}")
    assert provenance.git_commit(repository)[1]


def test_a_run_s_own_files_do_not_make_the_commit_dirty(repository: Path) -> None:
    (repository / "dvc.lock").write_text(LOCK)
    (repository / "metrics").mkdir()
    (repository / "metrics" / "scratch.json").write_text("{}")
    assert not provenance.git_commit(repository)[1]


def test_a_folder_without_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_commit(tmp_path) == (None, False)


def test_a_machine_without_git_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit(repository) == (None, False)


def test_the_data_version_changes_with_any_output(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK)
    before = provenance.data_version("digits", tmp_path)
    (tmp_path / "dvc.lock").write_text(LOCK.replace("md5: b", "md5: c"))
    assert before != provenance.data_version("digits", tmp_path)
    assert provenance.data_version("cifar10", tmp_path) is None


def test_before_the_first_run_there_is_no_data_version(tmp_path: Path) -> None:
    assert (provenance.dvc_lock_sha256(tmp_path), provenance.data_version("digits", tmp_path)) == (None, None)
