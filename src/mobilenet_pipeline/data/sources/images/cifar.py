"""CIFAR-10 as people have it: the extracted folder of either version, or its archive."""

import io
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

from mobilenet_pipeline.data.sources import cifar10
from mobilenet_pipeline.data.sources.base import IngestError, LabelledImages
from mobilenet_pipeline.data.sources.images.found import TEST, TRAIN, Content, Found, Record

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
"""In the order of the labels, as both versions of CIFAR-10 list them."""


def folder_of(path: Path) -> Path | None:
    """Return the folder with the batches: `path`, or the folder in it that has CIFAR-10's own name."""
    candidates = [path, *(path / name for name in FOLDERS)]
    return next((folder for folder in candidates if any(_batch_files(folder))), None)


def is_archive(path: Path) -> bool:
    """Return whether the tar archive has a batch of CIFAR-10."""
    try:
        with tarfile.open(path) as archive:
            return any(Path(member.name).name.removesuffix(".bin") in cifar10.BATCHES for member in archive)
    except PermissionError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError):
        return False


def read(path: Path) -> Found:
    """Return CIFAR-10 from a folder of `folder_of` or an archive. Raises IngestError if it is damaged."""
    return from_arrays(cifar10.read_archive(path) if path.is_file() else _read_folder(path))


def _read_folder(folder: Path) -> LabelledImages:
    """Return the images of the folder, by the reader of the archive: the files become a tar archive in memory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for file in _batch_files(folder):
            archive.add(file, file.name)
    stream.seek(0)
    try:
        return cifar10.read_archive(folder, stream)
    except IngestError as error:
        raise IngestError(f"{error}".partition("; ")[0] + "; unpack CIFAR-10's archive again") from None


def from_arrays(images: LabelledImages) -> Found:
    """Return the images as they are found elsewhere."""
    rows = zip(images.labels, images.is_test, strict=True)
    records = [
        Record(
            f"image {number}", CLASS_NAMES[label] if label < len(CLASS_NAMES) else str(label), TEST if test else TRAIN
        )
        for number, (label, test) in enumerate(rows)
    ]

    def contents() -> Iterator[Content]:
        yield from images.images

    return Found("CIFAR-10's own files", records, [], contents, CLASS_NAMES)


def _batch_files(folder: Path) -> list[Path]:
    return [
        folder / f"{name}{suffix}"
        for name in cifar10.BATCHES
        for suffix in ("", ".bin")
        if (folder / f"{name}{suffix}").is_file()
    ]
