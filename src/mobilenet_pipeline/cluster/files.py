"""Bring a dataset to a machine of the cluster, once, and check it there."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from filelock import FileLock

from mobilenet_pipeline.data.dataset import FILES, Dataset, DatasetError, changed_rows, open_dataset
from mobilenet_pipeline.workspace.files import read_json

PART = 64 << 20
"""Bytes of a file that are in memory at once."""
KEPT_SECONDS = 7 * 86400
_CHECKED = "checked"


def part(folder: Path, name: str, index: int) -> bytes:
    """Return a part of a file of the dataset; no bytes after the last one."""
    with (folder / name).open("rb") as file:
        file.seek(index * PART)
        return file.read(PART)


def parts(read: Callable[[str, int], bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield name and content of each file of a dataset, whose parts `read` returns."""
    for name in FILES:
        yield name, iter(partial(next, (read(name, index) for index in count())), b"")


def at_hand(shared: Path, digest: str, fetch: Callable[[], Iterable[tuple[str, Iterable[bytes]]]]) -> Dataset:
    """Return the dataset with this digest: that of the path, if the machine shares it, else what `fetch` brings.

    The workers of a machine fetch and check it once. Raises DatasetError if pixels differ from the manifest's hashes.
    """
    machine = _machine_folder()
    with FileLock(machine / f"{digest}.lock"):
        folder = shared if _digest(shared) == digest else machine / digest
        mark = machine / f"{digest}.{_CHECKED}"
        if folder != shared and _digest(folder) != digest:
            _write(folder, fetch())
            mark.unlink(missing_ok=True)
        dataset = open_dataset(folder)
        seen = f"{folder.resolve()} {(folder / 'images.npy').stat().st_mtime_ns}"
        checked = mark.exists() and mark.read_text(encoding="utf-8") == seen
        if not checked and (dataset.digest != digest or changed_rows(folder)):
            here = os.uname().nodename
            raise DatasetError(
                f"the images in {folder} on {here} are not those that were ingested; delete the copy and run again"
            )
        mark.write_text(seen, encoding="utf-8")
        _forget(machine)
    return dataset


def _forget(machine: Path) -> None:
    """Remove datasets that no training has used for `KEPT_SECONDS`."""
    for mark in machine.glob(f"*.{_CHECKED}"):
        if time.time() - mark.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
            mark.unlink()


def _digest(folder: Path) -> str | None:
    try:
        return str(read_json(folder / "dataset.json").get("digest"))
    except (ValueError, OSError):
        return None


def _machine_folder() -> Path:
    """Return a folder of this user for datasets, which all workers of the machine see."""
    folder = Path(tempfile.gettempdir()) / f"mobilenet-pipeline-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR for Ray on this machine")
    return folder


def _write(folder: Path, files: Iterable[tuple[str, Iterable[bytes]]]) -> None:
    """Write the files; dataset.json comes last, so that a folder with it is whole."""
    folder.mkdir(exist_ok=True)
    for name, content in files:
        with (folder / name).open("wb") as file:
            file.writelines(content)
