"""Where images come from: scikit-learn's digits, or a CIFAR-10 archive, downloaded and decoded, never executed."""

import fcntl
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
KNOWN_HASHES = {
    OFFICIAL_URL: "md5:c32a1d4ab5d03f1284b67883e8d87530",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
}
REMEDY = "set CIFAR10_ARCHIVE to the path or URL of a good cifar-10-binary.tar.gz or cifar-10-python.tar.gz"
RETRIES = 4  # after the first attempt; each goes on where the last one stopped
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the file
PIECE = 2**16  # bytes; what a broken connection costs, at most, is the piece that was under way

PIXELS = 32 * 32 * 3
TRAINING_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BATCHES = (*TRAINING_BATCHES, "test_batch")
MAX_BATCH_BYTES = 64 * 2**20  # twice the official size: a member that claims more is no CIFAR-10 batch


class IngestError(ValueError):
    """The source cannot become a dataset; the message names it, what is wrong and the remedy."""


class DownloadError(IngestError, ConnectionError):
    """The network or the server failed: trying again later may help."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """`images` uint8 (n, 32, 32, 3) RGB, `labels` uint8 (n,), `is_test` bool (n,), and for messages where from."""

    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    origin: str


def load_digits() -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits, 8×8 in 17 greys, as 32×32 RGB: 1,437 to train, 360 to test.

    Greys are spread over 0 to 255 and Pillow's bicubic filter enlarges them. The test split is stratified, and fixed
    here and not by a recipe: two recipes with different seeds must be scored on the same images.
    """
    from PIL import Image
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in grey]
    images = np.repeat(np.stack([np.asarray(image) for image in large])[..., np.newaxis], 3, axis=3)
    labels = digits.target.astype(np.uint8)
    is_test = np.zeros(len(labels), dtype=bool)
    _, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    is_test[test] = True
    return LabelledImages(images, labels, is_test, "scikit-learn's digits")


def load_cifar10() -> LabelledImages:
    """CIFAR-10 from `CIFAR10_ARCHIVE`, else from a cached download, else from the official address."""
    path = find_archive()
    try:
        return read_archive(path)
    except IngestError as error:
        if not _is_on_the_web(_place()):  # a file of the user's own, wherever it lies
            raise
        path.unlink()  # kept, it would be in the way of every later run, though the server may have a good one by then
        raise IngestError(f"{error}. The bad download was removed: the next run fetches it again") from error


def find_archive() -> Path:
    """The CIFAR-10 archive as a local file, downloaded where it must be.

    Raises DownloadError when the network fails, IngestError when `CIFAR10_ARCHIVE` names no file.
    """
    place = _place()
    if _is_on_the_web(place):
        return download(place)
    path = Path(url2pathname(urlsplit(place).path) if urlsplit(place).scheme == "file" else place).expanduser()
    if not path.is_file():
        raise IngestError(f"{path}: CIFAR10_ARCHIVE names no file; {REMEDY}, or unset it to download the archive")
    return path


def _place() -> str:
    return os.environ.get("CIFAR10_ARCHIVE", "") or OFFICIAL_URL


def _is_on_the_web(place: str) -> bool:
    return urlsplit(place).scheme in ("http", "https")


def cache_folder() -> Path:
    """Where downloads are kept: `MOBILENET_PIPELINE_CACHE`, or `~/.cache/mobilenet-pipeline`."""
    return Path(os.environ.get("MOBILENET_PIPELINE_CACHE", "") or "~/.cache/mobilenet-pipeline").expanduser()


def download(url: str) -> Path:
    """`url` as a file in the cache, fetched if it is not there or not whole. Raises DownloadError."""
    import pooch
    import requests

    folder, name = cache_folder(), PurePosixPath(urlsplit(url).path).name or "archive"
    if url != OFFICIAL_URL:  # two mirrors may hold different files of one name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    known_hash = KNOWN_HASHES.get(url)
    cache = pooch.create(folder, base_url="", registry={name: known_hash}, urls={name: url}, retry_if_failed=RETRIES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two recipes may want the same archive at the same time
            return Path(cache.fetch(name, downloader=partial(_fetch, part=folder / f"{name}.part")))
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"{url} could not be downloaded ({error}); try again later, or {REMEDY}") from error
    except OSError as error:
        raise IngestError(
            f"{folder}: the download could not be kept there ({error}); make room, or {REMEDY}"
        ) from error


def _fetch(url: str, output: str, _pooch: object, *, part: Path) -> None:
    """Pooch's downloaders begin at byte 0 each time; this one goes on from `part`, and moves it to `output` when whole.

    A part is only gone on from when the server says that the file is still the same one (If-Range).
    """
    import requests
    from tqdm import tqdm

    tag = part.with_name(f"{part.name}.tag")
    headers = {"Accept-Encoding": "identity"}
    if part.is_file() and tag.is_file():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text(encoding="latin-1")}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            tag.unlink(missing_ok=True)
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        tag.unlink(missing_ok=True)
        start = part.stat().st_size if resumed else 0
        size = int(answer.headers.get("Content-Length", 0)) + start
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=size or None, initial=start, unit="B", unit_scale=True, desc=PurePosixPath(url).name) as bar,
        ):
            if validator:
                tag.write_text(validator, encoding="latin-1")
            for piece in answer.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
    tag.unlink(missing_ok=True)
    part.replace(output)


def read_archive(path: Path) -> LabelledImages:
    """Decode a CIFAR-10 tar archive, binary or python version, however compressed and whatever it is called.

    Members are read as streams and never written to disk. Raises IngestError for anything else.
    """
    try:
        with tarfile.open(path) as archive:
            batches = _batches(archive)
    except IngestError as error:
        raise IngestError(f"{path}: {error}; {REMEDY}") from error
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())  # tarfile tells of every compression it tried, a line each
        raise IngestError(f"{path} is not a whole tar archive ({cause}); {REMEDY}") from error
    images, labels = zip(*(batches[name] for name in BATCHES), strict=True)
    is_test = np.repeat([name == "test_batch" for name in BATCHES], [len(batch) for batch in labels])
    # A row is 1,024 red, then 1,024 green, then 1,024 blue bytes.
    planes = np.concatenate(images).reshape(-1, 3, 32, 32)
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
            raise IngestError(f"member {member.name!r} ({member.size:,} bytes) is a link, too large, or there twice")
        decode = _decode_binary if path.suffix == ".bin" else _decode_pickle
        batches[name] = decode(stream.read(), member.name)
    if missing := [name for name in BATCHES if name not in batches]:
        raise IngestError(f"the archive holds no {', '.join(missing)}")
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
    except Exception as error:  # a pickle can fail in any way at all; none of them is worth more than this sentence
        raise IngestError(
            f"member {name!r} is not a CIFAR-10 python batch ({type(error).__name__}: {error})"
        ) from error
    return pixels, labels.astype(np.uint8)


class _PickledArray:
    """What stands in for a NumPy array while a batch is unpickled: it keeps the state and does nothing with it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, self.dtype, self.is_fortran, self.content = state

    def values(self) -> np.ndarray:
        """The array, uint8. Raises ValueError for another type or size."""
        if self.dtype.name not in (b"u1", "u1"):
            raise ValueError(f"data is of type {self.dtype.name!r}, not u1")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.is_fortran else "C")


class _PickledType:
    """What stands in for a NumPy dtype; only its name matters."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        pass


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode(text: str, _encoding: object) -> bytes:
    return text.encode("latin-1")  # how Python 3 writes bytes at protocol 2


# NumPy 2 renamed the module that its pickles name.
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    """Knows the four names that a CIFAR-10 batch needs, each as a stand-in that can do no harm; refuses all others."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ADMITTED:
            raise IngestError(f"a pickle asks for {module}.{name}, which no CIFAR-10 batch needs, and was not run")
        return _ADMITTED[module, name]
