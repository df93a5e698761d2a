"""`make install` with settings of pip and uv for other projects."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = {
    "PIP_USER": "1",
    "PIP_TARGET": "/elsewhere",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PYTHONHOME": "/elsewhere",
    "UV_SYSTEM_PYTHON": "1",
    "UV_REQUIRE_HASHES": "1",
    "UV_INDEX_URL": "https://mirror.example/simple",
    "VIRTUAL_ENV": "/elsewhere",
}
STAND_IN = """#!/bin/sh
env >> uv.txt
mkdir -p "$(dirname "$0")"
touch "$(dirname "$0")/mobilenet-pipeline"
chmod +x "$(dirname "$0")/mobilenet-pipeline"
"""
"""A `uv` that writes down its environment, and installs our command."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make install` has run, with a stand-in for uv as pip's only package."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    for name in ("requirements.lock", "pyproject.toml"):
        (folder / name).touch()
    with ZipFile(folder / "uv-1-py3-none-any.whl", "w") as wheel:
        program = ZipInfo("uv-1.data/scripts/uv")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, STAND_IN)
        wheel.writestr("uv-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 1\n")
        wheel.writestr("uv-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("uv-1.dist-info/RECORD", "")
    index = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    command = ["make", "install", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=folder, env={**HOSTILE, **index}, check=True, capture_output=True)
    return folder


def test_the_environment_is_made_whatever_pip_is_set_to(installed: Path) -> None:
    assert (installed / ".venv/.ready").exists()


def test_uv_gets_the_index_and_none_of_the_other_settings(installed: Path) -> None:
    variables = dict(line.partition("=")[::2] for line in (installed / "uv.txt").read_text().splitlines())
    assert variables["UV_INDEX_URL"] == HOSTILE["UV_INDEX_URL"]
    assert not {"UV_SYSTEM_PYTHON", "UV_REQUIRE_HASHES", "PIP_TARGET", "PYTHONHOME"} & variables.keys()
