"""The how-to's worked example is what the repository has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how-to/add-an-architecture.md").read_text(encoding="utf-8")
FILES = ["src/mobilenet_pipeline/models/architectures/mobilenet_v3_small.py", "src/mobilenet_pipeline/config.py"]


@pytest.mark.parametrize(
    ("file", "block"), list(zip(FILES, re.findall(r"```python\n(.*?)```", PAGE, re.S), strict=True))
)
def test_the_page_gives_the_file_or_line_of_the_repository(file, block):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert block in text
    assert block == text or len(block.splitlines()) == 1
