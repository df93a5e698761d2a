"""docs/reference: generated from the code, and complete."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tools" / "reference.py"
REFERENCE = ROOT / "docs" / "reference"
VARIABLE = re.compile(
    r"(BENTOML|CIFAR10|CUDA|DO_NOT|DVC|GIT|GRPC|GX|IMAGENET|KERAS|MLFLOW|MOBILENET|PIP|PREFECT|PROMETHEUS|SERVING|TF"
    r"|UV)_[A-Z0-9_]+|MATPLOTLIBRC|MPLBACKEND|PYTHON(OPTIMIZE|UTF8|WARNINGS)"
)
FRAMEWORKS_OWN = {"TF_NUM_INTRAOP_THREADS"}
"""Documented for users; only TensorFlow reads them."""


def documented() -> set[str]:
    """Return every environment variable in a table of the page."""
    lines = (REFERENCE / "environment.md").read_text(encoding="utf-8").splitlines()
    words = {word for line in lines if line.startswith("| ") for word in re.findall(r"`([A-Z0-9_]+)`", line)}
    return {word for word in words if VARIABLE.fullmatch(word)}


def used() -> set[str]:
    """Return every environment variable that the code names."""
    files = [path for folder in ("src", "flows", "serving") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    words = {word for word in words if not word.endswith("_")}  # a prefix of several
    return {word for word in words if VARIABLE.fullmatch(word)} | set(re.findall(r"\$\{(\w+)", compose))


def test_the_pages_are_what_the_code_says():
    done = subprocess.run([sys.executable, PROGRAM, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch):
    """Return the program as a module."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import reference

    return reference


def test_an_outdated_page_is_named_with_the_command(
    reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"recipe.md": lambda: "new"})
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/reference/recipe.md is not what the code says: run `make reference`\n"


def test_check_writes_nothing(reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"recipe.md": lambda: "new"})
    reference.main(["--check"])
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_a_recipe_is_described(reference):
    fields = [field for model in reference.SECTIONS.values() for field in model.model_fields.values()]
    assert all(field.description for field in fields)


def test_every_environment_variable_is_documented():
    assert used() - documented() == set()


def test_every_documented_variable_is_used():
    assert documented() - used() == FRAMEWORKS_OWN
