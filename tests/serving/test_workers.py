"""How many worker processes and threads the service has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SERVING_CORES": "1"}, "1 1"),
        ({"SERVING_CORES": "2"}, "1 2"),
        ({"SERVING_CORES": "8"}, "4 2"),
        ({"SERVING_CORES": "8", "SERVING_WORKERS": "1"}, "1 8"),
    ],
)
def test_two_cores_make_a_worker_with_two_threads(variables: dict[str, str], expected: str) -> None:
    code = "from serving.workers import THREADS, WORKERS; print(WORKERS, THREADS)"
    env = {**os.environ, **variables}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True, cwd=ROOT).strip() == expected
