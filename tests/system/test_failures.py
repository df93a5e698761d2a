"""Errors as sentences: a full disk is named with its path, whatever library failed."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from mobilenet_pipeline.system import failures
from mobilenet_pipeline.system.failures import explain

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def caused(error: Exception, cause: Exception) -> Exception:
    """Return the error with a cause, as libraries raise it."""
    error.__cause__ = cause
    return error


def test_an_error_for_people_stays_as_it_is() -> None:
    assert explain(ValueError("no recipe 'x'"), (ValueError,)) == "no recipe 'x'"


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "new" / "model.tflite"))
    assert str(explain(error, ())).startswith(f"no space is left on the disk of {tmp_path}/new/model.tflite (")


def test_the_target_of_a_failed_copy_is_named() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/etc/hostname", None, "/tmp/copy")
    assert "the disk of /tmp/copy " in str(explain(error, ()))


def test_a_library_s_error_is_put_down_to_its_cause() -> None:
    assert "no space is left" in str(explain(caused(RuntimeError("cannot build"), FULL), ()))


def test_a_full_database_is_a_full_disk() -> None:
    assert "no space is left" in str(explain(RuntimeError("(sqlite3.OperationalError) database or disk is full"), ()))


def test_without_a_file_the_fullest_place_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "mlruns").mkdir()
    monkeypatch.setattr(failures, "_free", lambda place: 0 if place.name == "mlruns" else 10)
    assert f"the disk of {workspace}/mlruns " in str(explain(FULL, ()))


def test_a_mount_that_nobody_can_write_to_is_not_the_full_disk(workspace: Path) -> None:
    (workspace / "pictures").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", "pictures"]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        assert explain(RuntimeError("a fault"), (ValueError,)) is None
    finally:
        subprocess.run(["umount", "--lazy", "pictures"], check=True)


def test_an_unknown_error_on_a_full_disk_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_free", lambda place: 4096)
    assert "no space is left" in str(explain(RuntimeError("Server error '500'"), ()))


def test_an_unknown_error_stays_unknown() -> None:
    assert explain(RuntimeError("a fault"), (ValueError,)) is None
