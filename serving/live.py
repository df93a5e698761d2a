"""A new champion without a restart: follow the pointer to the live Bento and load its models.

The old models answer the requests that have begun. A Bento that cannot be loaded is refused, and the old models stay.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving.served import ROLES_FILE, Roles, load_served

LOOK_SECONDS = 0.5
RETRY_SECONDS = 30.0
"""From a look at which the disk or the memory failed to the next try."""
LOG = logging.getLogger("bentoml.serving.live")


class Live:
    """The models that are served now: `roles`.

    `pointer` is the file that holds the tag of the live Bento. The Bentos are in `bentos`, beside the pointer's folder.
    Without a pointer the packaged models are served until the process ends. Code that is in no Bento, as in the
    repository, serves the live Bento's models. Raises ValueError if there is none.
    """

    def __init__(
        self,
        pointer: Path | None,
        own: Path = ROLES_FILE,
        load: Callable[[Path, Path | None], Roles] = load_served,
    ) -> None:
        self.load = load
        self.refused: dict[str, str] | None = None
        self.seen: tuple[str, int] | None = None
        self.retry_at = math.inf
        self.code: dict[str, bytes] | None = None
        if own.is_file():
            self.pointer = pointer
            self.roles, self.tags, self.code = load(own, None), own.read_bytes(), _code(own.parent)
            if self.pointer:
                self.look()  # a worker that is started again begins with the Bento that the service was started with
        else:
            self.pointer, self.tags = pointer or only_pointer(own.parent), b""
            self._load(self.pointer.parent.parent, self.pointer.read_text(encoding="utf-8").strip())

    def follow(self) -> None:
        """Start a thread that reads the pointer until the process ends."""
        if self.pointer:
            threading.Thread(target=self._look_for_ever, name="live", daemon=True).start()

    def _look_for_ever(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Load the models of the live Bento if the pointer was written since the last call.

        Models that disk or memory kept away are tried again after `RETRY_SECONDS`.
        """
        assert self.pointer is not None
        try:
            tag, written = self.pointer.read_text(encoding="utf-8").strip(), self.pointer.stat().st_mtime_ns
        except (OSError, ValueError):  # no Bento is live, or the disk is away
            return
        if (tag, written) == self.seen and time.monotonic() < self.retry_at:
            return
        self.seen, self.retry_at = (tag, written), math.inf
        try:
            self._load(self.pointer.parent.parent, tag)
            self.refused = None
        except Exception as error:  # a damaged Bento raises any error; the old models stay
            refusal = {"bento": tag, "reason": str(error) or type(error).__name__}
            if refusal != self.refused:
                LOG.exception("%s is refused; the old models stay", tag)
            self.refused = refusal
            if isinstance(error, (OSError, MemoryError)):  # disk or memory may be there again
                self.retry_at = time.monotonic() + RETRY_SECONDS

    def _load(self, home: Path, tag: str) -> None:
        source = home / "bentos" / tag.replace(":", "/") / "src"
        roles_file = source / ROLES_FILE.name
        tags = roles_file.read_bytes()
        if tags == self.tags:
            return
        if self.code is not None and _code(source) != self.code:
            raise ValueError(f"{tag} has another version of the service's code: start the service again")
        self.roles, self.tags = self.load(roles_file, home / "models"), tags
        LOG.info("%s is served now", tag)


def only_pointer(repository: Path) -> Path:
    """Return the pointer of the only live Bento in the store at BENTOML_HOME, or in the repository's."""
    home = Path(os.environ.get("BENTOML_HOME") or repository / ".bentoml")
    pointers = sorted((home / "live").glob("[!.]*"))
    if not pointers:
        raise ValueError(f"no Bento is live in {home}; run `mobilenet-pipeline run`, or set BENTOML_HOME to its store")
    if len(pointers) > 1:
        names = ", ".join(pointer.name for pointer in pointers)
        raise ValueError(f"several Bentos are live ({names}); set SERVING_LIVE to {home / 'live'}/NAME")
    return pointers[0]


def _code(source: Path) -> dict[str, bytes]:
    paths = [path for path in source.rglob("*") if path.suffix in (".py", ".html")]
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
