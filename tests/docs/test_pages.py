"""The pages for readers: their links, their commands, their figures, and the site that they become."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenet_pipeline import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")]
PAGES = [*TOP, *sorted(DOCS.rglob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor of every relative link and image."""
    return re.findall(r"\]\((?![a-z]+:)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def code(page: Path) -> str:
    """Return all code of the page: blocks and words in the text."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])


@each_page
def test_every_relative_link_resolves(page: Path):
    assert [path for path, _ in links(page) if path and not (page.parent / path).exists()] == []


@each_page
def test_every_anchor_is_a_heading(page: Path):
    targets = [((page.parent / path) if path else page, anchor) for path, anchor in links(page) if anchor]
    assert [(str(target), anchor) for target, anchor in targets if anchor not in anchors(target)] == []


@each_page
def test_every_make_target_exists(page: Path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code(page))) <= set(targets)


@each_page
def test_every_command_of_the_program_exists(page: Path):
    (group,) = [action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert set(re.findall(r"mobilenet-pipeline ([a-z][a-z-]*)", code(page))) <= set(group.choices)


def test_the_readme_has_at_most_160_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def measured() -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return accuracy, loss and CPU minutes of each (recipe, candidate) in the results."""
    figures = {}
    for recipe in ("cifar10", "seed"):
        document = json.loads((DOCS / "results" / f"{recipe}.json").read_text(encoding="utf-8"))
        for name, row in document["candidates"].items():
            figures[recipe, name] = row["test_accuracy"], row["test_loss"], row["cpu_minutes"]
    for row in json.loads((DOCS / "results/training.json").read_text(encoding="utf-8")):
        losses = [run["test_loss"] for run in row["runs"]]
        figures[row["recipe"], row["candidate"]] = row["test_accuracy"], sum(losses) / len(losses), row["cpu_minutes"]
    return figures


def test_the_figures_in_the_readme_are_those_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:]] for line in table.strip().splitlines()[2:]]
    shown = {(row[0], row[1]): (row[2].partition(" ±")[0].rstrip(" %"), row[3], row[6]) for row in rows}
    del shown["case study", "scratch"], shown["case study", "pretrained"]  # published figures
    expected = {
        key: (f"{accuracy * 100:.2f}", f"{loss:.3f}", f"{minutes:.0f}")
        for key, (accuracy, loss, minutes) in measured().items()
    }
    assert shown == expected


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_the_site_builds_without_a_warning(site: Path):
    assert (site / "index.html").is_file()


def test_the_site_loads_nothing_from_other_hosts(site: Path):
    loading = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+")
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    assert [tag for page in pages for tag in loading.findall(page)] == []


def test_a_file_outside_docs_is_a_page_of_the_site(site: Path):
    page = (site / "explanation/architecture.html").read_text(encoding="utf-8")
    assert 'href="../repository/ARCHITECTURE.html"' in page
    assert (site / "repository/ARCHITECTURE.html").is_file()
