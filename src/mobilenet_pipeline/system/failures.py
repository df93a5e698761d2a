"""Say in a sentence why a command failed, whatever library the error came through."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = re.compile(
    r"no space left on device|database or disk is full|disk quota exceeded"
    # NumPy's words for a short write, and Python's for a full /tmp.
    r"|\d+ requested and \d+ written|no usable temporary directory",
    re.IGNORECASE,
)
_LITTLE = 2**20
"""Free bytes below which an unknown error is put down to the disk."""


def explain(error: BaseException, known: tuple[type[BaseException], ...]) -> str | None:
    """Return an error as a sentence for people, None if its cause is unknown.

    `known` are the types whose message is such a sentence. An error from a full disk, of any type, becomes a sentence
    with the path. So does an unknown error if a disk is full now: a server reports its full disk as an internal error.
    """
    if is_full_disk(error):
        return _no_space(_named(error) or _fullest())
    if isinstance(error, known):
        return str(error)
    place = _fullest()
    return _no_space(place) if _free(place) < _LITTLE else None


def is_full_disk(error: BaseException) -> bool:
    """Return whether the error, or one behind it, comes from a full disk."""
    return any(_is_full(each) for each in chain(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors behind it, the first cause last."""
    met: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in met:
        met.append(following)
        yield following
        following = following.__cause__ or following.__context__


def _is_full(error: BaseException) -> bool:
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return known or bool(_FULL.search(str(error)))


def _no_space(place: Path) -> str:
    usage = shutil.disk_usage(_folder(place))
    return (
        f"no space is left on the disk of {place} ({usage.free:,} of {usage.total:,} bytes are free); free space there "
        "and run the same command again"
    )


def _named(error: BaseException) -> Path | None:
    """Return the file that could not be written, if an error names it."""
    for each in chain(error):
        if isinstance(each, OSError) and _is_full(each):
            file = each.filename2 or each.filename  # a copy names its source first
            if isinstance(file, str | bytes):
                return Path(os.fsdecode(file))
    return None


def _fullest() -> Path:
    """Return the place with the least free space among those where the pipeline writes."""
    places = [place for place in _places() if not os.statvfs(_folder(place)).f_flag & os.ST_RDONLY]
    return min(places, key=_free, default=Path.cwd())


def _places() -> Iterator[Path]:
    here = Path.cwd()
    yield from (here, *here.iterdir())  # a folder of the workspace may be on another disk
    for variable in ("BENTOML_HOME", "PREFECT_HOME"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if store.startswith("sqlite:///"):
        yield Path(store.removeprefix("sqlite:///"))
    try:
        yield Path(tempfile.gettempdir())
    except OSError:  # it is full
        yield Path(os.environ.get("TMPDIR", "/tmp"))


def _free(place: Path) -> int:
    return shutil.disk_usage(_folder(place)).free


def _folder(place: Path) -> Path:
    return next((folder for folder in (place, *place.absolute().parents) if folder.is_dir()), Path("/"))
