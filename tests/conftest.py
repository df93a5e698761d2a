"""Every test starts as the program does, for a user who has set much for other projects."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import logging as absl_logging

from mobilenet_pipeline.system import environment

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "tests" / "hostile"
HOSTILE = {
    "DVC_GLOBAL_CONFIG_DIR": str(SETTINGS / "dvc"),
    "GIT_CONFIG_GLOBAL": str(SETTINGS / "gitconfig"),
    "HTTP_PROXY": "http://127.0.0.1:9",  # nothing listens there
    "KERAS_BACKEND": "jax",
    "KERAS_HOME": str(SETTINGS),
    "MATPLOTLIBRC": str(SETTINGS),
    "MLFLOW_ACTIVE_MODEL_ID": "m-of-another-project",
    "MLFLOW_EXPERIMENT_NAME": "another-project",
    "MPLBACKEND": "TkAgg",
    "PIP_USER": "1",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:password",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "TF_USE_LEGACY_KERAS": "1",
}
"""Settings of a user for other projects. All of them are found by every test and every process that it starts."""

os.environ.update(HOSTILE)
environment.prepare()
for name in environment.team_settings(ROOT / environment.SERVERS):
    del os.environ[name]  # no test touches a team's servers
# Prefect sets logging up anew and so closes all handlers. That of absl, which Keras brings, would close what pytest has
# put in place of stderr, and every later test of the process would fail.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
pytest_plugins = ["bento_fixtures", "registry_fixtures", "toy_fixtures"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the project's params.yaml, and the current directory."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in [
        name
        for name in os.environ
        if name.startswith(("MLFLOW_TRACKING", "BENTOML_HOME", "CIFAR10_", "MOBILENET_PIPELINE_RECORDS"))
    ]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def give_memory_back() -> Iterator[None]:
    """Let go of models and graphs after every file: a command that ran in this process has kept them (`gc.freeze`)."""
    yield
    gc.unfreeze()
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session(free_memory=False)


LONGEST = (
    *("test_whole_pipeline.py", "test_distribution.py", "test_interruption.py", "test_deployments.py"),
    *("test_train.py", "test_review.py", "test_promotion.py", "test_bento.py"),
)
"""The files that take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no worker of pytest-xdist waits for another at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
