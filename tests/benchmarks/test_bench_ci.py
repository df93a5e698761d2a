"""`.ci/run` beside that of an earlier commit."""

from contextlib import nullcontext
from pathlib import Path

import bench_ci
import pytest

LOG = """tests/test_config.py ......
=========================== short test summary info ============================
SKIPPED [1] tests/data/test_ingest.py:228: 3 passed
=========== 3441 passed, 2 skipped in 2129.91s (0:35:29) ============
================== 23 passed in 775.51s (0:12:55) ===================
"""


def test_the_tests_of_both_suites_are_counted() -> None:
    assert bench_ci.passed(LOG) == 3464


def test_output_without_a_passed_test_is_refused() -> None:
    with pytest.raises(ValueError, match="no line of the output"):
        bench_ci.passed("make: *** No rule to make target 'test'.\n")


def test_a_run_sees_no_archive_of_this_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "= ${CIFAR10_ARCHIVE:-7} passed in 1.00s ="\n')
    script.chmod(0o755)
    monkeypatch.setenv("CIFAR10_ARCHIVE", "8")
    seconds, tests = bench_ci.run(tmp_path, tmp_path / "log")
    assert seconds > 0
    assert tests == 7


def test_after_a_failed_run_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(bench_ci.speed, "trees", lambda: nullcontext({"base": tmp_path, "now": tmp_path}))
    assert bench_ci.main() == 1
    assert "'.ci/run'" in capsys.readouterr().err
    assert not bench_ci.speed.RESULTS.exists()
