"""Fixtures: a workspace whose stages make up their outputs in no time.

A plugin that tests/conftest.py registers, so that tests of `stages` and of `flows` share the workspace.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).resolve().parent / "toy"

Toy = Callable[..., Path]


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy workspace before any run: DVC without Git, and toy stages."""
    folder = tmp_path_factory.mktemp("template")
    for name in ("toy.py", "dvc.yaml"):
        shutil.copyfile(TOY / name, folder / name)
    (folder / "setting.txt").write_text("1")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def toy(workspace: Path, toy_template: Path) -> Toy:
    """The toy workspace as current directory; call it to set how its stages behave (see toy.py)."""
    shutil.copytree(toy_template, workspace, dirs_exist_ok=True)

    def order(**orders: Any) -> Path:
        give_orders(workspace, **orders)
        return workspace

    order()
    return order


def give_orders(workspace: Path, **orders: Any) -> None:
    """Write toy.json, which sets how the toy stages behave: 100 of 200 images are right unless the orders differ."""
    (workspace / "toy.json").write_text(json.dumps({"right": 100, **orders}))
