"""Bentos take long to build: here they are records of themselves."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from mobilenet_pipeline.config import Recipe


@dataclass(frozen=True)
class Bento:
    """What packaging says of a Bento."""

    tag: str
    versions: dict[str, str | None]
    hashes: dict[str, str | None]
    is_current: bool = True


@dataclass
class Packaging:
    """A Bento store in memory, with the functions that promotion calls."""

    bentos: list[Bento] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    broken: bool = False
    pointer: str | None = None

    def package(self, recipe: Recipe, champion: Path, challenger: Path | None) -> str:
        folders = {"champion": champion, "challenger": challenger}
        known = {
            role: json.loads((folder / "metadata.json").read_text()) if folder else {}
            for role, folder in folders.items()
        }
        versions = {role: facts.get("version") for role, facts in known.items()}
        hashes = {role: facts.get("sha256") for role, facts in known.items()}
        for bento in self.bentos:
            if (bento.versions, bento.hashes, bento.is_current) == (versions, hashes, True):
                return bento.tag
        self.bentos.append(Bento(f"{recipe.registered_model}:{len(self.bentos) + 1}", versions, hashes))
        return self.bentos[-1].tag

    def check(self, tag: str, milliseconds: float) -> None:
        self.checked.append(tag)
        if self.broken:
            raise RuntimeError(f"{tag} does not answer")

    def put_live(self, tag: str) -> None:
        self.pointer = tag

    def live(self, recipe: Recipe) -> Bento | None:
        return next((bento for bento in self.bentos if bento.tag == self.pointer), None)

    def discard(self, tag: str) -> None:
        self.bentos = [bento for bento in self.bentos if bento.tag != tag]
