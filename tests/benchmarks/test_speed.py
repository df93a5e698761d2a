"""Trees of two commits to compare."""

import subprocess
from pathlib import Path

import pytest
import speed


def git(*words: str, folder: Path) -> str:
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_both_commits_are_on_a_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "--quiet", folder=tmp_path)
    for message in ("earlier", "now"):
        git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", message, folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "BASE", git("rev-parse", "HEAD~", folder=tmp_path))
    with speed.trees() as trees:
        messages = {name: git("log", "-1", "--format=%s", folder=tree) for name, tree in trees.items()}
        branches = [git("symbolic-ref", "HEAD", folder=tree) for tree in trees.values()]
    assert messages == {"base": "earlier", "now": "now"}
    assert all(branch.startswith("refs/heads/") for branch in branches)
