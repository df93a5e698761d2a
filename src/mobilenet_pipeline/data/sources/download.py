"""Download files into the cache. A broken download resumes."""

import fcntl
import hashlib
import os
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mobilenet_pipeline.data.sources.base import REMEDY, DownloadError, IngestError

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


KNOWN_HASHES = {
    OFFICIAL_URL: "md5:c32a1d4ab5d03f1284b67883e8d87530",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
}


RETRIES = 4  # after the first attempt; each resumes the download


TIMEOUT = (10, 30)  # seconds to connect, and between two chunks of the file


PIECE = 2**16  # bytes; a broken connection loses at most one piece


def is_on_the_web(place: str) -> bool:
    """Return whether `place` is a web address."""
    return urlsplit(place).scheme in ("http", "https")


def cache_folder() -> Path:
    """Return the folder for downloads.

    It is `MOBILENET_PIPELINE_CACHE`, or `~/.cache/mobilenet-pipeline`.
    """
    return Path(os.environ.get("MOBILENET_PIPELINE_CACHE", "") or "~/.cache/mobilenet-pipeline").expanduser()


def download(url: str) -> Path:
    """Return the cached file of `url`; download it if it is missing or incomplete.

    Raises DownloadError if the network or the server fails, IngestError if the cache is not writable.
    """
    import pooch
    import requests

    folder, name = cache_folder(), PurePosixPath(urlsplit(url).path).name or "archive"
    if url != OFFICIAL_URL:  # two mirrors may have different files of the same name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    known_hash = KNOWN_HASHES.get(url)
    cache = pooch.create(folder, base_url="", registry={name: known_hash}, urls={name: url}, retry_if_failed=RETRIES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two recipes may download the same archive at the same time
            return Path(cache.fetch(name, downloader=partial(_fetch, part=folder / f"{name}.part")))
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"{url} could not be downloaded ({error}); try again later, or {REMEDY}") from error
    except OSError as error:
        raise IngestError(
            f"{folder}: the download could not be stored there ({error}); free disk space, or {REMEDY}"
        ) from error


def _fetch(url: str, output: str, _pooch: object, *, part: Path) -> None:
    """Download `url` to `part`, resuming it, and move the complete file to `output`.

    Pooch's own downloaders always begin at byte 0. A part is resumed only if the file on the server is unchanged
    (If-Range).
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
