"""Files that are written whole or not at all, and read with a remedy."""

from pathlib import Path

import pytest

from mobilenet_pipeline.workspace import files
from mobilenet_pipeline.workspace.files import WorkspaceError


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    files.write_json(path, {"champion": "1"})
    with pytest.raises(RuntimeError), files.whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"champion": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_json_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_bytes(b"\xff{")
    with pytest.raises(WorkspaceError, match=r"training\.json is not JSON .*mobilenet-pipeline run"):
        files.read_json(tmp_path / "training.json")


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"training\.json does not exist; create it with `mobilenet-pipeline run"):
        files.read_json(tmp_path / "training.json")
