"""Read CIFAR-10 from its official archives, binary or python version. No pickled code is run."""

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from mobilenet_pipeline.data.sources import download
from mobilenet_pipeline.data.sources.base import REMEDY, IngestError, LabelledImages

SIDE = 32
PIXELS = SIDE * SIDE * 3


TRAINING_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


BATCHES = (*TRAINING_BATCHES, "test_batch")


MAX_BATCH_BYTES = 64 * 2**20  # twice the official size; a larger member is not a CIFAR-10 batch


def load_cifar10() -> LabelledImages:
    """Return CIFAR-10 from `CIFAR10_ARCHIVE`, or else from the official address.

    Downloads are cached. Raises IngestError if the archive is damaged or not CIFAR-10; a damaged download is deleted.
    """
    path = find_archive()
    try:
        return read_archive(path)
    except IngestError as error:
        if not download.is_on_the_web(_place()):  # never delete the user's own file
            raise
        path.unlink()  # a later run downloads it again; the server may have a good file by then
        raise IngestError(f"{error}. The damaged download was deleted; the next run downloads it again") from error


def find_archive() -> Path:
    """Return the path of the CIFAR-10 archive; download it if necessary.

    Raises DownloadError if the network fails, IngestError if the file of `CIFAR10_ARCHIVE` does not exist.
    """
    place = _place()
    if download.is_on_the_web(place):
        return download.download(place)
    path = Path(url2pathname(urlsplit(place).path) if urlsplit(place).scheme == "file" else place).expanduser()
    if not path.is_file():
        raise IngestError(
            f"{path}: the file of CIFAR10_ARCHIVE does not exist; {REMEDY}, or unset it to download the archive"
        )
    return path


def _place() -> str:
    return os.environ.get("CIFAR10_ARCHIVE", "") or download.OFFICIAL_URL


def read_archive(path: Path, stream: IO[bytes] | None = None) -> LabelledImages:
    """Return the images of a CIFAR-10 tar archive, binary or python version.

    The archive is the file `path`, or `stream`. Any name and any compression of `tarfile` will do. Members are read as
    streams and never written to disk. Raises IngestError if the file is not such an archive.
    """
    try:
        with tarfile.open(path, fileobj=stream) as archive:
            batches = _batches(archive)
    except IngestError as error:
        raise IngestError(f"{path}: {error}; {REMEDY}") from error
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())  # tarfile's message has a line for every compression
        raise IngestError(f"{path} is not a complete tar archive ({cause}); {REMEDY}") from error
    images, labels = zip(*(batches[name] for name in BATCHES), strict=True)
    is_test = np.repeat([name == "test_batch" for name in BATCHES], [len(batch) for batch in labels])
    # A row is 1,024 red, then 1,024 green, then 1,024 blue bytes.
    planes = np.concatenate(images).reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(planes.transpose(0, 2, 3, 1), np.concatenate(labels), is_test, str(path))


Batch = tuple[np.ndarray, np.ndarray]  # images uint8 (n, 3072), labels uint8 (n,)


def _batches(archive: tarfile.TarFile) -> dict[str, Batch]:
    batches: dict[str, Batch] = {}
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise IngestError(f"member {member.name!r} points outside the archive")
        name = path.name.removesuffix(".bin")
        if name not in BATCHES:
            continue
        stream = archive.extractfile(member) if member.isfile() else None
        if stream is None or name in batches or member.size > MAX_BATCH_BYTES:
            raise IngestError(f"member {member.name!r} ({member.size:,} bytes) is a link, too large, or a duplicate")
        decode = _decode_binary if path.suffix == ".bin" else _decode_pickle
        batches[name] = decode(stream.read(), member.name)
    if missing := [name for name in BATCHES if name not in batches]:
        raise IngestError(f"the archive lacks {', '.join(missing)}")
    return batches


def _decode_binary(content: bytes, name: str) -> Batch:
    if not content or len(content) % (PIXELS + 1):
        raise IngestError(f"member {name!r} has {len(content):,} bytes, not a multiple of {PIXELS + 1:,}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, PIXELS + 1)
    return rows[:, 1:], rows[:, 0]


def _decode_pickle(content: bytes, name: str) -> Batch:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = fields["data"].values(), np.asarray(fields["labels"])
        if (
            pixels.shape != (*labels.shape, PIXELS)
            or labels.dtype.kind != "i"
            or labels.min() < 0
            or labels.max() > 255
        ):
            raise ValueError(f"data is {pixels.shape} and labels are {labels.dtype} {labels.shape}")
    except IngestError:
        raise
    except Exception as error:  # unpickling can raise any exception
        raise IngestError(
            f"member {name!r} is not a CIFAR-10 python batch ({type(error).__name__}: {error})"
        ) from error
    return pixels, labels.astype(np.uint8)


class _PickledArray:
    """A stand-in for a NumPy array while a batch is unpickled: it only stores the array's state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, self.dtype, self.is_fortran, self.content = state

    def values(self) -> np.ndarray:
        """Return the array, uint8. Raises ValueError for another type or size."""
        if self.dtype.name not in (b"u1", "u1"):
            raise ValueError(f"data is of type {self.dtype.name!r}, not u1")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.is_fortran else "C")


class _PickledType:
    """A stand-in for a NumPy dtype: it only stores the name."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        pass


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode(text: str, _encoding: object) -> bytes:
    return text.encode("latin-1")  # Python 3 pickles bytes this way at protocol 2


# NumPy 2 renamed numpy.core, and pickles contain the module's name.
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that maps the four names in CIFAR-10 batches to harmless stand-ins, and refuses all other names."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ADMITTED:
            raise IngestError(f"the pickle asks for {module}.{name}, which no CIFAR-10 batch needs; it was not run")
        return _ADMITTED[module, name]
