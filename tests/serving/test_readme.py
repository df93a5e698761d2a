"""The clients in the README, run unchanged."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bento_fixtures import CLASSES, Service

README = Path(__file__).resolve().parents[2] / "README.md"
Encode = Callable[..., bytes]


def block(language: str, word: str, service: Service) -> str:
    """Return the README's code block in that language with the word in it, for the running service."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [text for text in blocks if word in text]
    return str(text).replace("http://127.0.0.1:3000", service.address)


@pytest.fixture
def folder(tmp_path: Path, encode: Encode) -> Path:
    (tmp_path / "photo.jpg").write_bytes(encode("JPEG", (200, 150)))
    return tmp_path


def run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_client_in_python_prints_class_and_version(service: Service, folder: Path) -> None:
    name, version = run(folder, sys.executable, "-c", block("python", "httpx", service)).split()
    assert (name in CLASSES, version) == (True, "2")


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_client_in_javascript_prints_class_and_version(service: Service, folder: Path) -> None:
    (folder / "client.mjs").write_text(block("js", "fetch", service))
    name, version = run(folder, "node", "client.mjs").split()
    assert (name in CLASSES, version) == (True, "2")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_calls_with_curl_are_all_answered(service: Service, folder: Path) -> None:
    answers = run(folder, "bash", "-ec", block("sh", "predict_batch", service).replace("curl ", "curl -fsS -w '\\n' "))
    predicted, compared, batch, model = answers.splitlines()
    assert all(f'"model_version":"{version}"' in compared for version in "21")
    assert '"class":' in predicted
    assert batch.count('"class":') == 2
    assert '"version":"2"' in model
