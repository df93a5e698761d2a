"""A new champion without a restart: follows the file that says which Bento is live, and takes its models over.

Requests that have begun are answered by the models they began with. What cannot be loaded is refused, and what is
served stays.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving.served import ROLES_FILE, Roles, load_served

LOOK_SECONDS = 0.5
LOG = logging.getLogger("bentoml.serving.live")


class Live:
    """What is served now.

    `pointer` is a file with a Bento's tag in it; the Bentos are in `bentos` beside its folder. Without one, what was
    packaged is served for good.
    """

    def __init__(
        self,
        pointer: Path | None,
        own: Path = ROLES_FILE,
        load: Callable[[Path], Roles] = load_served,
    ) -> None:
        self.pointer, self.load = pointer, load
        self.roles = load(own)
        self.tags, self.code = own.read_bytes(), _code(own.parent)
        self.refused: dict[str, str] | None = None
        self.seen: tuple[str, int] | None = None

    def follow(self) -> None:
        """Look at the file now and then, until the process ends."""
        if self.pointer:
            threading.Thread(target=self._look_for_ever, name="live", daemon=True).start()

    def _look_for_ever(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Take over what the file names, if it was written anew."""
        assert self.pointer is not None
        try:
            found = self.pointer.read_text(encoding="utf-8").strip(), self.pointer.stat().st_mtime_ns
        except (OSError, ValueError):  # no Bento is live, or the disk is away: what is served stays
            return
        if found == self.seen:
            return
        self.seen, tag = found, found[0]
        try:
            self._take_over(self.pointer.parent.parent, tag)
            self.refused = None
        except Exception as error:  # a damaged Bento raises whatever its damage leads to; the old one goes on
            LOG.exception("%s is refused, the models from before go on", tag)
            self.refused = {"bento": tag, "reason": str(error)}

    def _take_over(self, home: Path, tag: str) -> None:
        source = home / "bentos" / tag.replace(":", "/") / "src"
        roles_file = source / ROLES_FILE.name
        tags = roles_file.read_bytes()
        if tags == self.tags:
            return
        if _code(source) != self.code:
            raise ValueError(f"{tag} has another version of the service's code: start the service again")
        self.roles, self.tags = self.load(roles_file), tags
        LOG.info("%s is served from now on", tag)


def _code(source: Path) -> dict[str, bytes]:
    paths = [path for path in source.rglob("*") if path.suffix in (".py", ".html")]
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
