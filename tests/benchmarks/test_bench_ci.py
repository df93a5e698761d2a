"""`.ci/run` beside that of an earlier commit."""

from contextlib import nullcontext
from pathlib import Path

import bench_ci
import pytest

LOG = """tests/test_config.py ......
=========================== short test summary info ============================
SKIPPED [1] tests/data/test_ingest.py:228: 3 passed
..........=========== 3441 passed, 2 skipped in 2129.91s (0:35:29) ============
================== 23 passed in 775.51s (0:12:55) ===================
"""


def test_the_tests_of_both_suites_are_counted() -> None:
    assert bench_ci.passed(LOG) == 3464


def tree(folder: Path, *lines: str) -> Path:
    """Return a folder whose `.ci/run` has these lines of shell."""
    script = folder / ".ci" / "run"
    script.parent.mkdir()
    script.write_text("\n".join(["#!/bin/sh", *lines]))
    script.chmod(0o755)
    return folder


def test_a_run_sees_no_archive_of_this_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_ARCHIVE", "8")
    script = 'echo "= ${CIFAR10_ARCHIVE:-7} passed in 1.00s ="'
    assert bench_ci.run(tree(tmp_path, script), tmp_path / "log")[1] == 7


def test_a_run_without_a_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ended with 0, and 0 tests passed; read "):
        bench_ci.run(tree(tmp_path, "true"), tmp_path / "log")


def test_after_a_failed_run_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failing = tree(tmp_path, 'echo "= 1 failed, 6 passed in 1.00s ="', "exit 3")
    monkeypatch.setattr(bench_ci.speed, "trees", lambda: nullcontext({"base": failing, "now": failing}))
    with pytest.raises(SystemExit, match=r"ended with 3, and 6 tests passed; read \.bench/ci-base\.log"):
        bench_ci.main()
    assert not bench_ci.speed.RESULTS.exists()
