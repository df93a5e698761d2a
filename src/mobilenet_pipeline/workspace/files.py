"""Write files atomically, read them with a remedy in the error, and identify them by their SHA-256."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobilenet_pipeline.inference import artefact


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end of the `with` body.

    If the body raises, `path` stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write `document` as JSON, atomically."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and flush it to the disk.

    Raises OSError if the line cannot be written; the file is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        # Until the line is whole, no other process appends: its line would be cut off with the rest of this one.
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.seek(0, os.SEEK_END)
        data = f"{line}\n".encode()
        if before and os.pread(file.fileno(), 1, before - 1) != b"\n":
            data = b"\n" + data  # an editor has left out the end of the last line
        try:
            # On a full disk, write accepts the beginning of a line and fails at the next call.
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class WorkspaceError(ValueError):
    """A file of the workspace is missing, damaged, or of other data than the rest."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256, hex, of a file. Raises WorkspaceError if it is missing."""
    return artefact.sha256_of(existing(path))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON document.

    Raises WorkspaceError, naming the file and the remedy, if the file is missing or damaged.
    """
    try:
        document = json.loads(existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WorkspaceError(
            f"{path} is not JSON ({error}); write it again with `mobilenet-pipeline run --recipe …`"
        ) from None
    return dict(document)


def existing(path: Path) -> Path:
    """Return `path`. Raises WorkspaceError if there is no file."""
    if not path.is_file():
        raise WorkspaceError(f"{path} does not exist; create it with `mobilenet-pipeline run --recipe …`")
    return path


def shown(url: str) -> str:
    """Return the address without user name and password, also where the password has characters that need escapes."""
    plain = re.sub(r"^([\w+.-]+://)[^/?#]*@", r"\1", url)
    # SQLAlchemy reads a password with any character but @.
    plain = re.sub(r"^((?!http)[\w+.-]+://)[^:/@]*:[^@]*@", r"\1", plain)
    return re.sub(r"([?&](?:user|\w*password)=)[^&]*", r"\1…", plain)
