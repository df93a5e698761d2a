"""Files that are written whole or not at all, and read with a remedy."""

import fcntl
import resource
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaits
from pathlib import Path

import pytest

from mobilenet_pipeline.workspace import files
from mobilenet_pipeline.workspace.files import WorkspaceError


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    def write_half() -> None:
        with files.whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    path = tmp_path / "verdict.json"
    files.write_json(path, {"champion": "1"})
    with pytest.raises(RuntimeError):
        write_half()
    assert files.read_json(path) == {"champion": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_json_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_bytes(b"\xff{")
    with pytest.raises(WorkspaceError, match=r"training\.json is not JSON .*mobilenet-pipeline run"):
        files.read_json(tmp_path / "training.json")


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"training\.json does not exist; create it with `mobilenet-pipeline run"):
        files.read_json(tmp_path / "training.json")


def test_a_full_disk_leaves_the_appended_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    files.append_line(path, "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, limits[1]))  # as if the disk were full
        with pytest.raises(OSError, match="large"):
            files.append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "first\n"


def test_a_line_follows_one_whose_end_an_editor_has_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text("first")
    files.append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def test_a_line_waits_until_that_of_another_process_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with ThreadPoolExecutor(1) as pool, path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        appended = pool.submit(files.append_line, path, "second")
        with pytest.raises(StillWaits):
            appended.result(0.2)
        other.write("first\n")
        other.close()
        appended.result()
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@host:5432/team", "postgresql://host:5432/team"),
        ("postgresql://ann:sec/ret@host/team", "postgresql://host/team"),
        ("postgresql://ann:sec@ret@host/team", "postgresql://host/team"),
        ("postgresql://host/team?user=ann&password=secret", "postgresql://host/team?user=…&password=…"),
        ("https://token@host/team.git", "https://host/team.git"),
        ("http://host:5000/models@3", "http://host:5000/models@3"),
        ("sqlite:////srv/team@work/records.db", "sqlite:////srv/team@work/records.db"),
    ],
)
def test_an_address_is_shown_without_login(url: str, shown: str) -> None:
    assert files.shown(url) == shown
