"""Every test starts without telemetry and with quiet frameworks, as the program does."""

import os
from pathlib import Path

import pytest

from mobilenet_pipeline import environment

environment.prepare()
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the project's params.yaml, and the current directory."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "BENTOML_HOME", "CIFAR10_"))]:
        monkeypatch.delenv(name)
    return tmp_path
