"""MkDocs hook that adds linked files outside docs/ to the site, in the folder `repository/`.

A relative link such as `../../ARCHITECTURE.md` then works on the site as in the repository.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "repository"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)")
"""The target of a relative Markdown link, without its anchor."""
DATE = re.compile(r"(?<=\| )\d{4}-\d\d-\d\d\b")
"""A date in a table; browsers would break it at its hyphens."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every linked file, also those that added pages link to; return all files."""
    queue = [file for file in files if file.is_documentation_page()]
    while queue:
        for target in _targets(Path(str(queue.pop().abs_src_path))):
            address = _address(target)
            if address and address not in files.src_uris:
                added = File.generated(config, address, abs_src_path=str(target))
                files.append(added)
                if added.is_documentation_page():
                    queue.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links to addresses on the site.

    Dates in tables stay on one line.
    """
    source = Path(str(page.file.abs_src_path))
    folder = Path(page.file.src_uri).parent

    def moved(link: re.Match[str]) -> str:
        address = _address(_resolve(source, link[1]))
        return Path(os.path.relpath(address, folder)).as_posix() if address in files.src_uris else link[1]

    return DATE.sub(r'<span class="date">\g<0></span>', LINK.sub(moved, markdown))


def _targets(source: Path) -> Iterator[Path]:
    for link in LINK.findall(source.read_text(encoding="utf-8")):
        yield _resolve(source, link)


def _resolve(source: Path, link: str) -> Path:
    return Path(os.path.normpath(source.parent / link))


def _address(target: Path) -> str:
    """Return the target's address on the site; empty if it is not in the repository."""
    if not target.is_file() or not target.is_relative_to(ROOT):
        return ""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"{OUTSIDE}/{target.relative_to(ROOT).as_posix()}"
