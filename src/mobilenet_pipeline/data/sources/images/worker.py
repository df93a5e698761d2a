"""Decode some images: what each worker does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from mobilenet_pipeline.data.sources.images.found import Content
from mobilenet_pipeline.data.statistics import CHANNELS, content_hashes, statistics
from mobilenet_pipeline.inference.preprocess import ImageError, Resize, open_image, shrink

SMALLEST = 2
"""Pixels of the shorter side of the smallest image that shows anything."""
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif", ".avifs"),
}
KINDS = {
    "mislabelled": "the file is {format} by its content; it is kept",
    "animated": "the file has several images; the first one is kept",
    "cmyk": "the colours are for printing (CMYK); the image is kept in RGB",
    "sixteen_bit": "the image has 16 bits a channel; it is kept with 8",
    "tiny": "the image has {width} × {height} pixels, which shows nothing",
    "blank": "all pixels are equal",
}


def end_with_parent() -> None:
    """Make this process end with the one that started it, however that ends; Ctrl-C is for that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


class Header(NamedTuple):
    """Facts of a file before its pixels are decoded; a file that cannot be opened has the format ""."""

    width: int
    height: int
    mode: str
    format: str


class Fault(NamedTuple):
    """What is wrong with an image, `row` in its chunk; one that is not `kept` has no pixels."""

    row: int
    kind: str
    sentence: str
    kept: bool


@dataclass
class Chunk:
    """The results for images in a row: headers, faults, the content hash ("" without pixels) and statistics of each."""

    headers: list[Header]
    faults: list[Fault]
    hashes: list[str]
    statistics: dict[str, np.ndarray]


def decode_chunk(
    contents: list[Content], names: list[str], size: int, resize: Resize, pixels: str | None, offset: int
) -> Chunk:
    """Decode some images, write their pixels at byte `offset` of the file `pixels`, and return what they are."""
    images = np.zeros((len(contents), size, size, 3), np.uint8)
    rows, faults, readable = [], [], np.zeros(len(contents), bool)
    for row, (content, name) in enumerate(zip(contents, names, strict=True)):
        header, found, image = _decode(content, name, size, resize)
        rows.append(header)
        faults += [Fault(row, *fault) for fault in found]
        if image is not None:
            images[row], readable[row] = image, True
    measured = statistics(images)
    blank = readable & ~np.any([measured[f"std_{channel}"] for channel in CHANNELS], axis=0)
    faults += [Fault(row, "blank", KINDS["blank"], False) for row in np.flatnonzero(blank).tolist()]
    readable &= ~blank
    hashes = [hash_ if kept else "" for hash_, kept in zip(content_hashes(images), readable, strict=True)]
    if pixels:
        file = os.open(pixels, os.O_WRONLY)
        try:
            data = memoryview(images.tobytes())
            while data:
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(file)
    return Chunk(rows, faults, hashes, measured)


Result = tuple[Header, list[tuple[str, str, bool]], np.ndarray | None]


def _decode(content: Content, name: str, size: int, resize: Resize) -> Result:
    """Return an image's header, its faults (kind, sentence, kept) and its pixels, None if it cannot be used."""
    try:
        image = _open(content)
        header = Header(*image.size, image.mode, image.format or "")
        if min(image.size) < SMALLEST:
            return header, [("tiny", KINDS["tiny"].format(**header._asdict()), False)], None
        faults = [(kind, KINDS[kind].format(**header._asdict()), True) for kind in _oddities(image, name)]
        if isinstance(content, np.ndarray) and content.shape == (size, size, 3):
            return header, faults, content
        return header, faults, shrink(image, size, resize)
    except ImageError as error:
        return Header(0, 0, "", ""), [(error.code, str(error), False)], None
    except OSError as error:
        return Header(0, 0, "", ""), [("unreadable", f"the file cannot be read ({error.strerror})", False)], None


def _open(content: Content) -> Image.Image:
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    return open_image(content.read_bytes() if isinstance(content, Path) else content)


def header_of(content: Content) -> Header:
    try:
        image = _open(content)
    except (ImageError, OSError):
        return Header(0, 0, "", "")
    return Header(*image.size, image.mode, image.format or "")


def _oddities(image: Image.Image, name: str) -> Iterator[str]:
    suffix = Path(name).suffix.lower()
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    if image.format in SUFFIXES and suffix in known and suffix not in SUFFIXES[image.format]:
        yield "mislabelled"
    if getattr(image, "is_animated", False) and image.format != "MPO":
        yield "animated"
    if image.mode == "CMYK":
        yield "cmyk"
    if image.mode.startswith("I") or (
        isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile[3]) for tile in image.tile)
    ):
        yield "sixteen_bit"
