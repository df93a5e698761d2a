"""Bring a dataset to a machine of the cluster, once, and check it there."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from mobilenet_pipeline.data.dataset import FILES, Dataset, DatasetError, changed_rows, open_dataset
from mobilenet_pipeline.workspace.files import read_json

PART = 64 << 20
"""Bytes of a file that are in memory at once."""
_CHECKED = "checked"


def parts(folder: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield name and content of each file of the dataset, the content in parts of at most `PART` bytes."""
    for name in FILES:
        yield name, _parts(folder / name)


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(PART):
            yield part


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
        if not mark.exists() or mark.read_text(encoding="utf-8") != seen:
            if dataset.digest != digest or changed_rows(folder):
                raise DatasetError(
                    f"the images in {folder} are not those that were ingested: the copy on {os.uname().nodename} is "
                    "damaged; delete it and run again"
                )
            mark.write_text(seen, encoding="utf-8")
    return dataset


def _digest(folder: Path) -> str | None:
    try:
        return str(read_json(folder / "dataset.json").get("digest"))
    except (ValueError, OSError):
        return None


def _machine_folder() -> Path:
    """Return a folder of this user for datasets, which all workers of the machine see."""
    folder = Path(tempfile.gettempdir()) / f"mobilenet-pipeline-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR for Ray on this machine")
    return folder


def _write(folder: Path, files: Iterable[tuple[str, Iterable[bytes]]]) -> None:
    """Write the files; dataset.json comes last, so that a folder with it is whole."""
    folder.mkdir(exist_ok=True)
    for name, content in files:
        with (folder / name).open("wb") as file:
            file.writelines(content)
