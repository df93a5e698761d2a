"""Where results come from, with and without git and DVC."""

import subprocess
from pathlib import Path

import pytest

from mobilenet_pipeline.workspace import provenance

LOCK = """
stages:
  ingest@digits: {outs: [{path: data/digits, md5: a.dir}, {path: reports/digits/ingestion, md5: b.dir}]}
"""


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


def test_a_new_file_makes_the_commit_dirty_whatever_git_is_set_to(repository: Path) -> None:
    git(repository, "config", "status.showUntrackedFiles", "no")
    (repository / "new.py").touch()
    assert provenance.git_commit(repository)[1]


def test_a_run_s_own_files_do_not_make_the_commit_dirty(repository: Path) -> None:
    (repository / "dvc.lock").write_text(LOCK)
    (repository / "metrics").mkdir()
    (repository / "metrics" / "scratch.json").write_text("{}")
    assert not provenance.git_commit(repository)[1]


def test_a_folder_without_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_commit(tmp_path) == (None, False)
    assert "is not in a Git repository; `git init`" in str(provenance.why_no_commit(tmp_path))


def test_a_machine_without_git_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit(repository) == (None, False)
    assert "git is not installed" in str(provenance.why_no_commit(repository))


def test_a_repository_of_another_user_names_git_s_setting(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert provenance.git_commit(repository) == (None, False)
    assert f"git config --global --add safe.directory {repository}" in str(provenance.why_no_commit(repository))


def test_a_repository_before_its_first_commit_says_so(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert provenance.git_commit(tmp_path) == (None, True)
    assert "no commit yet" in str(provenance.why_no_commit(tmp_path))


def test_the_reason_for_no_commit_is_a_tag_of_the_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "git_problem" not in provenance.origin("digits", workspace=repository)
    monkeypatch.setenv("PATH", "")
    assert "git is not installed" in provenance.origin("digits", workspace=repository)["git_problem"]


def test_a_commit_is_looked_up_or_git_s_failure_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert (provenance.has_commit(head, repository), provenance.has_commit("0" * 40, repository)) == (True, False)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(provenance.GitFailed, match=r"safe\.directory"):
        provenance.has_commit(head, repository)


def test_the_data_version_is_that_of_the_images_whatever_files_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert provenance.data_version("digits", tmp_path) == "a.dir"


def test_recipes_apart_have_a_lock_apart(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/dvc.lock").write_text(LOCK.replace("digits", "cifar10"))
    assert provenance.data_version("cifar10", tmp_path) is not None
    assert provenance.data_version("digits", tmp_path) is None
    assert provenance.dvc_lock_sha256("cifar10", tmp_path) is not None


def test_before_the_first_run_there_is_no_data_version(tmp_path: Path) -> None:
    assert (provenance.dvc_lock_sha256("digits", tmp_path), provenance.data_version("digits", tmp_path)) == (None, None)
