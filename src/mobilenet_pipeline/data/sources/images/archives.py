"""Unpack a zip or tar archive into a temporary folder. Nothing is written outside of it."""

import errno
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import Self

from mobilenet_pipeline.data.sources.base import IngestError

SPARE = 2**28
"""Bytes of the disk that stay free."""
DISK = "free disk space, or set TMPDIR to another disk"
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError, ValueError)
"""What Python's modules raise for damaged archives."""


def is_archive(path: Path) -> bool:
    """Return whether the file is a zip or tar archive, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with the archive's files, which is deleted at the end of the `with` body.

    Raises IngestError if the archive is damaged, names a file outside, or is too large for the disk; PermissionError if
    it may not be read.
    """
    with tempfile.TemporaryDirectory(prefix="mobilenet-pipeline-") as name:
        folder = Path(name)
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    _check_size(path, sum(member.file_size for member in archive.infolist()), _free(folder), folder)
                    archive.extractall(folder)  # it drops drives, roots and ".." of names, and makes no links
            else:
                _unpack_tar(path, folder)
        except tarfile.FilterError as error:
            raise IngestError(f"{path}: {error}; make the archive of the images' own folder") from None
        except (IngestError, PermissionError):
            raise
        except DAMAGE as error:
            cause = " ".join(str(error).split())
            if isinstance(error, OSError) and error.errno:  # of the system; those of gzip and bz2 have no number
                remedy = DISK if error.errno in (errno.ENOSPC, errno.EDQUOT) else "correct this, or pack it again"
                raise IngestError(f"{path} could not be unpacked into {folder.parent}: {cause}; {remedy}") from None
            raise IngestError(f"{path} is no complete archive ({cause}); download or pack it again") from None
        yield _without_wrapper(folder)


class _Header(tarfile.TarInfo):
    """A header of a tar archive. `tarfile` takes any damaged header but the first one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the header in a block of bytes. Raises ReadError if the block is neither a header nor the end."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):  # a complete archive ends with zeros
                raise
            raise tarfile.ReadError(str(error)) from None


def _unpack_tar(path: Path, folder: Path) -> None:
    size, free = 0, _free(folder)
    with tarfile.open(path, tarinfo=_Header) as archive:
        for member in archive:  # in the order of the file, so that a compressed archive is read once
            size += member.size
            _check_size(path, size, free, folder)
            if member.isfile() or member.isdir() or member.issym() or member.islnk():
                archive.extract(member, folder, filter="data")
        while archive.fileobj.read(2**20):  # a compressed file has a checksum behind its last byte
            pass


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free - SPARE


def _check_size(path: Path, size: int, free: int, folder: Path) -> None:
    if size > free:
        raise IngestError(
            f"{path} needs at least {size:,} bytes unpacked, and {folder.parent} has {free:,} free; {DISK}"
        )


def _without_wrapper(folder: Path) -> Path:
    """Return the only folder in the only folder …, since archives often have one around everything."""
    while True:
        names = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(names) != 1 or not names[0].is_dir() or names[0].is_symlink():
            return folder
        inner = [path for path in names[0].iterdir() if not path.name.startswith(".")]
        if any(path.is_file() and not _is_data(path) for path in inner) or not inner:
            return folder
        folder = names[0]


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".parquet", ".txt", ".md", ".json", ".html", ".meta") or (
        path.name.startswith(("data_batch", "test_batch", "batches"))
    )
