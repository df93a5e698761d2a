"""Decode many images on all cores, at a bounded memory: a process or thread for each core, a file for the pixels."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images.found import Content, Found
from mobilenet_pipeline.data.sources.images.worker import Chunk, Fault, Header, decode_chunk, end_with_parent, header_of
from mobilenet_pipeline.inference.preprocess import Resize

CHUNK_BYTES, CHUNK_IMAGES = 2**23, 256
"""The largest chunk that a worker decodes at a time, in bytes of pixels and in images."""
MANY = 4_000
"""Images from which on processes decode them. They take a second to start, but Python lets the threads of one process
decode small images one at a time only."""
AHEAD = 3
"""Chunks for each worker that wait or are done: what bounds the memory of images that are bytes in a Parquet file."""


@dataclass
class Decoded:
    """The results for all images of a source: a row for each record."""

    rows: pd.DataFrame
    faults: list[Fault]


def decode_all(
    found: Found, size: int, resize: Resize, pixels: Path | None, workers: int, progress: Callable[[int], object]
) -> Decoded:
    """Return hash, statistics and header of every image, decoded at `size` × `size` by `workers` workers.

    The file `pixels`, if given, gets the pixels of record i at byte i × size × size × 3. `progress` is called with the
    number of images of every chunk. Raises OSError if the disk is full.
    """
    length = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // (size * size * 3)))
    names = [record.name for record in found.records]
    if pixels:
        pixels.touch()
    frames, faults, start = [], [], 0
    tasks = _tasks(found, names, length, size, resize, pixels)
    for chunk in _run(tasks, workers, processes=workers > 1 and len(names) >= MANY):
        frames.append(pd.DataFrame({**_columns(chunk.headers), "hash": chunk.hashes, **chunk.statistics}))
        faults += [fault._replace(row=start + fault.row) for fault in chunk.faults]
        start += len(chunk.hashes)
        progress(len(chunk.hashes))
    return Decoded(pd.concat(frames, ignore_index=True), faults)


def headers(found: Found, most: int) -> list[Header]:
    """Return size, mode and format of at most `most` images, evenly chosen; no pixels are decoded."""
    step = max(1, -(-len(found.records) // most))
    return [header_of(content) for content in islice(found.contents(), 0, None, step)]


Task = tuple[list[Content], list[str], int, Resize, str | None, int]


def _tasks(
    found: Found, names: list[str], length: int, size: int, resize: Resize, pixels: Path | None
) -> Iterator[Task]:
    contents, start = found.contents(), 0
    while chunk := list(islice(contents, length)):
        file = str(pixels) if pixels else None
        yield chunk, names[start : start + len(chunk)], size, resize, file, start * size * size * 3
        start += len(chunk)


def _run(tasks: Iterator[Task], workers: int, *, processes: bool) -> Iterator[Chunk]:
    """Yield the chunks in order, decoded by processes or threads. Raises IngestError if a process was killed."""
    context = multiprocessing.get_context("spawn")  # a copy of this process could hold locks of its threads
    with ProcessPoolExecutor(workers, context, end_with_parent) if processes else ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Chunk]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(decode_chunk, *task))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise IngestError(
                "a process that decodes images was killed, perhaps for want of memory; nothing was changed, run again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _columns(rows: list[Header]) -> dict[str, list[object]]:
    return {
        f"file_{name}": [getattr(row, name) for row in rows]  # the dataset's own columns are height and width
        for name in Header._fields
    }
