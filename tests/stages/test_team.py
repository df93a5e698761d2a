"""What a team shares: DVC's remote restores in one workspace what another has trained, and a tag keeps dvc.lock."""

import shutil
import subprocess
from pathlib import Path

import pytest
from toy_fixtures import Toy

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.stages import runner, team

TAG = "promoted/digits-mobilenet-2-rrrrrrrr"


def git(*words: str, folder: Path = Path(".")) -> str:
    identity = ["-c", "user.name=ann", "-c", "user.email=ann@example.com"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def remote(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DVC's remote of the team, a folder."""
    folder = tmp_path_factory.mktemp("remote")
    monkeypatch.setenv(team.DVC_REMOTE, str(folder))
    return folder


@pytest.fixture
def trained(toy: Toy, remote: Path) -> Path:
    """A workspace in Git whose data were ingested and pushed."""
    workspace = toy()
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "-m", "code")
    runner.run_stage("ingest@digits", lambda _: None)
    return workspace


def share(recipe: Recipe) -> list[str]:
    return team.share(recipe, ["ingest@digits"], "2", "r" * 32)


def test_a_second_workspace_restores_what_the_first_ran(
    trained: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert share(recipe)[0].startswith("The outputs are in /")
    second = tmp_path_factory.mktemp("second") / "workspace"
    shutil.copytree(trained, second, ignore=shutil.ignore_patterns("data", "dvc.lock", "cache", "tmp", "runs*"))
    monkeypatch.chdir(second)
    assert runner.run_stage("ingest@digits", lambda _: None).outcome == "restored"
    assert (second / "data/digits").is_dir()


def test_the_lock_is_in_a_tag_and_on_no_branch(trained: Path, recipe: Recipe) -> None:
    head = git("rev-parse", "HEAD")
    assert share(recipe)[1] == f"Their dvc.lock is in the Git tag {TAG}."
    assert git("show", f"{TAG}:dvc.lock") == Path("dvc.lock").read_text()
    assert (git("rev-parse", "HEAD"), git("rev-parse", f"{TAG}^")) == (head, head)
    assert "dvc.lock" not in git("ls-files")


def test_outputs_are_shared_once(trained: Path, recipe: Recipe) -> None:
    share(recipe)
    assert share(recipe) == []


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Git remote of the team."""
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", str(bare))
    monkeypatch.setenv(team.GIT_REMOTE, str(bare))
    return bare


def test_the_tag_goes_to_the_git_remote(trained: Path, recipe: Recipe, bare: Path) -> None:
    share(recipe)
    assert git("tag", "--list", folder=bare).strip() == TAG


def test_a_tag_of_another_workspace_stays(trained: Path, recipe: Recipe, bare: Path) -> None:
    share(recipe)
    before = git("rev-parse", TAG, folder=bare)
    git("tag", "--delete", TAG)
    git("commit", "--quiet", "--allow-empty", "-m", "another commit")
    assert share(recipe) == []
    assert git("rev-parse", TAG, folder=bare) == before


def test_a_remote_that_is_set_later_gets_the_outputs(
    trained: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(recipe)
    monkeypatch.setenv(team.DVC_REMOTE, str(tmp_path / "later"))
    assert share(recipe)[0] == f"The outputs are in {tmp_path / 'later'}."
    assert list((tmp_path / "later").iterdir())


def test_a_token_in_the_git_remote_is_not_shown(trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(team.GIT_REMOTE, "https://secret@127.0.0.1:9/team.git")
    assert "secret" not in " ".join(share(recipe))


def test_a_git_remote_that_is_away_is_tried_again(
    trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(team.GIT_REMOTE, "/nowhere.git")
    assert share(recipe)[-1].startswith(f"Git cannot push the tag to /nowhere.git ({team.GIT_REMOTE}): git push failed")
    assert git("tag", "--list") == ""


def test_a_dvc_remote_that_is_away_is_tried_again(
    trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(team.DVC_REMOTE, "/proc/nowhere")
    (sentence,) = share(recipe)
    assert sentence.startswith(f"DVC cannot push to /proc/nowhere ({team.DVC_REMOTE}): ")
    assert git("tag", "--list") == ""


def test_without_settings_nothing_is_shared(trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(team.DVC_REMOTE)
    assert share(recipe) == []
    assert git("tag", "--list") == ""


def test_a_setting_that_is_gone_leaves_dvc_s_own_remote(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team.follow_setting()
    monkeypatch.delenv(team.DVC_REMOTE)
    assert team.follow_setting() is False
    assert "team" not in Path(".dvc/config.local").read_text()
