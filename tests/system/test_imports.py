import os
import subprocess
import sys
from pathlib import Path

import pytest

START = "from mobilenet_pipeline.system import environment; environment.prepare()\n"


def run(code: str, **variables: str) -> str:
    command = [sys.executable, "-c", START + code]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_keras_is_imported_without_packages_that_nobody_here_needs():
    code = "import sys, keras, tensorflow; print({'matplotlib', 'sklearn', 'scipy.stats'} & set(sys.modules))"
    assert run(code) == "set()\n"


def test_after_keras_these_packages_can_be_imported():
    assert run("import keras, matplotlib.pyplot, sklearn.base; print(sklearn.base.clone.__name__)") == "clone\n"


@pytest.fixture
def other_keras(tmp_path: Path) -> dict[str, str]:
    """Variables with which `keras` is a package that shows what it and another thread can import."""
    (tmp_path / "keras.py").write_text("""
import importlib, threading

def importable(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True

def look():
    others.append(importable("sklearn"))

own, others = importable("sklearn"), []
thread = threading.Thread(target=look)
thread.start()
thread.join()
""")
    return {"PYTHONPATH": str(tmp_path)}


def test_another_thread_can_import_these_packages_while_keras_is_imported(other_keras):
    assert run("import keras; print(keras.own, keras.others)", **other_keras) == "False [True]\n"


def test_what_is_imported_already_is_not_hidden_from_keras(other_keras):
    assert run("import sklearn, keras; print(keras.own)", **other_keras) == "True\n"


def test_a_keras_that_cannot_be_imported_hides_nothing_afterwards(tmp_path):
    (tmp_path / "keras.py").write_text("raise RuntimeError('broken')")
    code = "try:\n    import keras\nexcept RuntimeError as error:\n    import sklearn\n    print(error)"
    assert run(code, PYTHONPATH=str(tmp_path)) == "broken\n"
