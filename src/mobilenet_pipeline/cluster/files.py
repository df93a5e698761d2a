"""Bring a dataset to a machine of the cluster, once, and check it there."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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


class MachineError(Exception):
    """A machine of the cluster cannot keep a dataset."""


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

    The workers of a machine fetch and check it once, and again if it is damaged. Raises DatasetError if pixels differ
    from the manifest's hashes, MachineError if this machine cannot keep it.
    """
    machine = _machine_folder()
    with FileLock(machine / f"{digest}.lock"):
        mark = machine / f"{digest}.{_CHECKED}"
        if _digest(shared) == digest:
            dataset = _checked(shared, digest, mark)
        else:
            try:
                dataset = _checked(machine / digest, digest, mark)
            except DatasetError:
                _write(machine / digest, fetch())
                dataset = _checked(machine / digest, digest, mark)
        _forget(machine)
    return dataset


def _checked(folder: Path, digest: str, mark: Path) -> Dataset:
    """Open the dataset, after a look at all pixels unless the mark says that it was taken."""
    try:
        dataset = open_dataset(folder)
        seen = f"{folder.resolve()} {(folder / 'images.npy').stat().st_mtime_ns}"
        checked = mark.exists() and mark.read_text(encoding="utf-8") == seen
        if not checked and (dataset.digest != digest or changed_rows(folder)):
            raise DatasetError(f"the images in {folder} are not those that were ingested; ingest the recipe again")
    except DatasetError as error:
        raise DatasetError(f"on {os.uname().nodename}, {error}") from None
    mark.write_text(seen, encoding="utf-8")
    return dataset


def _forget(machine: Path) -> None:
    """Remove datasets that no training has used for `KEPT_SECONDS`, and what a killed worker has left of one."""
    for folder in filter(Path.is_dir, machine.iterdir()):
        mark = machine / f"{folder.name}.{_CHECKED}"
        with suppress(FileNotFoundError):  # a worker with another dataset removes it, too
            if time.time() - (mark if mark.exists() else folder).stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                mark.unlink(missing_ok=True)


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
        raise MachineError(f"{folder} belongs to another user; remove it, or set TMPDIR for Ray on this machine")
    return folder


def _write(folder: Path, files: Iterable[tuple[str, Iterable[bytes]]]) -> None:
    """Write the files; dataset.json comes last, so that a folder with it is whole. Raises MachineError."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        for name, content in files:
            with (folder / name).open("wb") as file:
                file.writelines(content)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            remedy = "make room, or set TMPDIR for Ray on this machine"
            where = f"{folder} on {os.uname().nodename}"
            raise MachineError(f"the dataset cannot be written to {where} ({error.strerror}); {remedy}") from None
        raise
