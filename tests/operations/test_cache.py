"""DVC's cache: what its locks and ours keep, on a real DVC project."""

import hashlib
import json
from pathlib import Path

import pytest
from toy_fixtures import Toy

from mobilenet_pipeline.operations import cache


def put(workspace: Path, content: bytes, ending: str = "") -> str:
    """Write an object to the cache and return its MD5."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + ending
    path = cache.place(workspace / ".dvc" / "cache", md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


def put_folder(workspace: Path, *md5s: str) -> str:
    """Write a folder of these objects to the cache and return its MD5."""
    entries = [{"md5": md5, "relpath": f"file{index}"} for index, md5 in enumerate(md5s)]
    return put(workspace, json.dumps(entries).encode(), ".dir")


def names(found: list[Path]) -> set[str]:
    return {path.parent.name + path.name for path in found}


@pytest.fixture
def objects(toy: Toy) -> dict[str, str]:
    """A cache with an object that nothing needs, one that is asked for, and a folder with one that is asked for."""
    workspace = toy()
    alone, wanted, inside = (put(workspace, word) for word in (b"alone", b"wanted", b"inside"))
    return {"alone": alone, "wanted": wanted, "inside": inside, "folder": put_folder(workspace, inside)}


def test_only_what_nobody_needs_may_go(objects: dict[str, str]) -> None:
    assert names(cache.collect([objects["wanted"], objects["folder"]], dry=True)) == {objects["alone"]}


def test_a_removal_keeps_the_rest(objects: dict[str, str], workspace: Path) -> None:
    cache.collect([objects["wanted"], objects["folder"], "0" * 32], dry=False)
    there = {name for name, md5 in objects.items() if cache.place(workspace / ".dvc/cache", md5).exists()}
    assert there == {"wanted", "inside", "folder"}


def test_a_dry_removal_removes_nothing(objects: dict[str, str], workspace: Path) -> None:
    cache.collect([], dry=True)
    assert all(cache.place(workspace / ".dvc/cache", md5).exists() for md5 in objects.values())


def test_outputs_of_recipes_that_dvc_does_not_see_are_locked(objects: dict[str, str], workspace: Path) -> None:
    lock = workspace / "recipes" / "dvc.lock"
    lock.parent.mkdir()
    lock.write_text(f"schema: '2.0'\nstages:\n  ingest@seed:\n    outs:\n    - {{path: a, md5: {objects['wanted']}}}\n")
    assert cache.locked() == {objects["wanted"]}


def test_a_damaged_lock_is_an_error_with_its_name(workspace: Path) -> None:
    (workspace / "dvc.lock").write_text("stages: [")
    with pytest.raises(ValueError, match=r"dvc\.lock is damaged"):
        cache.locked()


def test_a_failure_of_dvc_has_its_message(workspace: Path) -> None:
    with pytest.raises(cache.DvcFailed, match="not inside of a DVC repository"):
        cache.run("status")


def test_a_command_of_dvc_has_a_limit_in_time(workspace: Path) -> None:
    with pytest.raises(cache.DvcFailed, match="no answer after 0 s"):
        cache.run("version", seconds=0.01)
