"""Every test starts without telemetry and with quiet frameworks, as the program does."""

import os
import sys
from pathlib import Path

import pytest
from absl import logging as absl_logging

from mobilenet_pipeline.system import environment

environment.prepare()
# Prefect sets logging up anew and so closes all handlers. That of absl, which Keras brings, would close what pytest has
# put in place of stderr, and every later test of the process would fail.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
pytest_plugins = ["bento_fixtures", "registry_fixtures", "toy_fixtures"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the project's params.yaml, and the current directory."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "BENTOML_HOME", "CIFAR10_"))]:
        monkeypatch.delenv(name)
    return tmp_path
