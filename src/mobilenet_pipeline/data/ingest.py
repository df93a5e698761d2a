"""Write a source's images as a dataset: arrays, and a manifest with a row per image."""

import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mobilenet_pipeline import config
from mobilenet_pipeline.data.dataset import FILES, digest
from mobilenet_pipeline.data.sources import base, cifar10, digits
from mobilenet_pipeline.data.sources.base import IngestError, LabelledImages
from mobilenet_pipeline.data.sources.images import decoding
from mobilenet_pipeline.data.sources.images.look import opened
from mobilenet_pipeline.data.sources.images.settle import Settled, settle
from mobilenet_pipeline.data.statistics import content_hashes, statistics

CHUNK_BYTES = 2**26
"""Pixels that are in memory at a time."""
LOADERS: dict[str, Callable[[], LabelledImages]] = {"digits": digits.load_digits, "cifar10": cifar10.load_cifar10}
HERE = Path(".")
Images = Iterator[np.ndarray]
"""Images uint8 (n, h, w, 3) in the order of the manifest, a chunk after the other."""


def ingest(recipe: config.Recipe, folder: Path, lists: Path | None = None, home: Path = HERE) -> dict[str, Any]:
    """Write the recipe's images into `folder`, and return dataset.json's content.

    The files are `images.npy`, `labels.npy`, `manifest.parquet` and `dataset.json`. Rows are sorted by content hash, so
    that the same images give the same bytes from any source. The folder `lists`, if given, gets what is of the source:
    `files.parquet` with the file of each image, and `problems.json`. `data.path` is relative to `home`. Raises
    IngestError if the images are not the recipe's; the files that were there stay unchanged.
    """
    data = recipe.data
    source = None if data.source == "images" else LOADERS[data.source]()
    try:
        with ExitStack() as stack:
            fresh = stack.enter_context(_beside(folder))
            if source is None:
                origin, settled = str(data.path), _decoded(recipe, home, fresh / "pixels")
                manifest = manifest_of(settled, data.class_names, data.image_size)
                images = _read_in_order(fresh / "pixels", manifest["record"].to_numpy(), data.image_size)
                files = manifest[["hash", "name", "class_name", "split"]]
                manifest = manifest.drop(columns=["record", "name"])
                problems, shape = summary(settled), [data.image_size, data.image_size, 3]
            else:
                origin = source.origin
                order, manifest = arrange(source, data.class_names)
                shape = list(source.images.shape[1:])
                images = _in_order(np.asarray(source.images), order)
                files = manifest[["hash", "class_name", "split"]].assign(name="")
                problems = {"found": len(manifest), "kept": len(manifest), "kinds": {}, "problems": []}
            counts = {split: int((manifest["split"] == split).sum()) for split in ("train", "test")}
            dataset: dict[str, Any] = {
                "digest": digest(manifest),
                "rows": counts,
                "class_names": data.class_names,
                "image_shape": shape,
            }
            _check(recipe, origin, dataset["digest"], counts)
            _write(fresh, images, manifest, dataset)
            places = [(fresh / name, folder / name) for name in FILES]
            if lists:
                staged = stack.enter_context(_beside(lists))
                files.to_parquet(staged / "files.parquet", index=False)
                text = json.dumps(problems, indent=2, ensure_ascii=False) + "\n"
                (staged / "problems.json").write_text(text, encoding="utf-8")
                places += [(staged / name, lists / name) for name in ("files.parquet", "problems.json")]
            for target in {target.parent for _, target in places}:
                target.mkdir(parents=True, exist_ok=True)
            for place, target in places:
                place.replace(target)
    except OSError as error:  # of writing: those of a source are IngestErrors
        raise IngestError(
            f"the dataset could not be written to {folder} ({error}); the files that were there are unchanged; free "
            "disk space or correct the permissions, then run again"
        ) from error
    return dataset


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk of the folder `target`, which is deleted at the end of the `with` body.

    One that a killed process left there is deleted, too.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for place in target.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}", place.name):  # as `tempfile` names them
            shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        yield Path(name)


def _decoded(recipe: config.Recipe, home: Path, pixels: Path) -> Settled:
    """Decode the recipe's image files into the file `pixels`, and return which of them are the dataset's."""
    data, workers = recipe.data, cores()
    if data.path is None:
        raise IngestError(f"params.yaml: recipes.{recipe.name}.data.path is empty; set it to the folder of the images")
    with opened(home / data.path) as found:
        started = time.monotonic()
        with tqdm(total=len(found.records), desc="decoding", unit="image", delay=1, mininterval=1) as bar:
            decoded = decoding.decode_all(found, data.image_size, data.resize, pixels, workers, bar.update)
        seconds = time.monotonic() - started
        print(
            f"{len(found.records):,} images decoded in {seconds:.1f} s, {len(found.records) / seconds:,.0f} images a "
            f"second on {workers} {'core' if workers == 1 else 'cores'}",
            flush=True,
        )
        return settle(found, decoded, data.class_names, data.test_share, data.split_seed)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def manifest_of(settled: Settled, class_names: Sequence[str], size: int) -> pd.DataFrame:
    """Return the manifest of a source's images, sorted, with the columns `record` and `name` of the source."""
    rows = settled.rows.rename(columns={"label": "class_name"})
    label = rows["class_name"].map({name: number for number, name in enumerate(class_names)}).astype(np.int64)
    facts: dict[str, Any] = {"height": size, "width": size, "channels": 3, "dtype": "uint8"}
    return _sorted(rows.assign(label=label, **facts))[["record", "name", *COLUMNS]].reset_index(drop=True)


STATISTICS = ("pixel_min", "pixel_max", *(f"{moment}_{channel}" for moment in ("mean", "std") for channel in "rgb"))
COLUMNS = ("split", "label", "class_name", "group", "hash", "height", "width", "channels", "dtype", *STATISTICS)


def summary(settled: Settled) -> dict[str, Any]:
    """Return problems.json's content: how many images there are, and every problem."""
    return {
        "found": settled.found,
        "kept": len(settled.rows),
        "kinds": dict(sorted(Counter(problem.kind for problem in settled.problems).items())),
        "problems": [problem._asdict() for problem in settled.problems],
    }


def arrange(source: LabelledImages, class_names: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the order of the images by (hash, label, split), and the manifest in this order.

    Raises IngestError if a label has no class name.
    """
    if len(source.labels) and source.labels.max() >= len(class_names):
        row = int(source.labels.argmax())
        raise IngestError(
            f"{source.origin}: row {row} has label {source.labels[row]}, but the recipe names {len(class_names)} "
            "classes; correct data.class_names in params.yaml, or the source"
        )
    images = np.ascontiguousarray(source.images)
    manifest = pd.DataFrame(
        {
            "split": np.where(source.is_test, "test", "train"),
            "label": source.labels.astype(np.int64),
            "class_name": np.asarray(class_names)[source.labels],
            "group": "",
            "hash": content_hashes(images),
            "height": images.shape[1],
            "width": images.shape[2],
            "channels": images.shape[3],
            "dtype": str(images.dtype),
            **statistics(images),
        }
    )
    manifest = _sorted(manifest)
    return manifest.index.to_numpy(), manifest.reset_index(drop=True)


def _sorted(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest.sort_values(["hash", "label", "split"])


def _in_order(images: np.ndarray, order: np.ndarray) -> Images:
    step = max(1, CHUNK_BYTES // max(1, images[0].nbytes)) if len(images) else 1
    for start in range(0, len(order), step):
        yield images[order[start : start + step]]


def _read_in_order(pixels: Path, records: np.ndarray, size: int) -> Images:
    """Yield the images of the file that `decode_all` wrote, in the order of `records`."""
    length = size * size * 3
    step = max(1, CHUNK_BYTES // length)
    with pixels.open("rb", buffering=0) as file:
        for start in range(0, len(records), step):
            chunk = records[start : start + step]
            data = b"".join(os.pread(file.fileno(), length, int(record) * length) for record in chunk)
            yield np.frombuffer(data, np.uint8).reshape(len(chunk), size, size, 3)


def _check(recipe: config.Recipe, origin: str, actual: str, counts: dict[str, int]) -> None:
    """Raise IngestError if digest and row counts are not the recipe's."""
    data, key = recipe.data, f"recipes.{recipe.name}.data.digest"
    if not data.digest:
        raise IngestError(f"params.yaml: {key} is empty; to use {origin}, set it to {actual}")
    expected = {"train": data.train_rows, "test": data.test_rows}
    if (actual, counts) == (data.digest, expected):
        return
    remedy = f"to use these images, set {key} and the row counts in params.yaml to the actual values"
    if data.source == "cifar10":
        remedy = f"{base.REMEDY}; {remedy}"
    raise IngestError(
        f"{origin} does not hold the images of recipe {recipe.name}: digest {actual} with {_rows(counts)}, expected "
        f"{data.digest} with {_rows(expected)}; {remedy}"
    )


def _rows(counts: dict[str, int]) -> str:
    return f"{counts['train']:,} train and {counts['test']:,} test rows"


def _write(folder: Path, images: Images, manifest: pd.DataFrame, dataset: dict[str, Any]) -> None:
    """Write the four files into `folder`; the images are never in memory together."""
    with (folder / "images.npy").open("wb") as file:
        shape = (len(manifest), *dataset["image_shape"])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in images:
            file.write(np.ascontiguousarray(chunk).data)
    np.save(folder / "labels.npy", manifest["label"].to_numpy(np.uint16))
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
