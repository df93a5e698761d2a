"""Write a source's images as a dataset: arrays, and a manifest with a row per image."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilenet_pipeline import config
from mobilenet_pipeline.data.dataset import FILES, digest
from mobilenet_pipeline.data.sources import base, cifar10, digits
from mobilenet_pipeline.data.sources.base import IngestError, LabelledImages

CHANNELS = ("r", "g", "b")
CHUNK = 5_000  # images per pass over the pixels: their 64-bit sums must fit into memory
LOADERS: dict[str, Callable[[], LabelledImages]] = {"digits": digits.load_digits, "cifar10": cifar10.load_cifar10}


def ingest(recipe: config.Recipe, folder: Path) -> dict[str, Any]:
    """Write the recipe's images into `folder`, and return dataset.json's content.

    The files are `images.npy`, `labels.npy`, `manifest.parquet` and `dataset.json`. Rows are sorted by content hash, so
    that the same images give the same bytes from any archive. Raises IngestError if the images are not the recipe's;
    the files that were there stay unchanged.
    """
    source = LOADERS[recipe.data.source]()
    images, labels, manifest = arrange(source, recipe.data.class_names)
    counts = {split: int((manifest["split"] == split).sum()) for split in ("train", "test")}
    dataset: dict[str, Any] = {
        "digest": digest(manifest),
        "rows": counts,
        "class_names": recipe.data.class_names,
        "image_shape": list(images.shape[1:]),
        "source": recipe.data.source,
    }
    _check(recipe, source.origin, dataset["digest"], counts)
    _write(folder, images, labels, manifest, dataset)
    return dataset


def arrange(source: LabelledImages, class_names: list[str]) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return images, labels and manifest, sorted by (hash, label, split).

    Row i of the manifest describes image i. Raises IngestError if a label has no class name.
    """
    if len(source.labels) and source.labels.max() >= len(class_names):
        row = int(source.labels.argmax())
        raise IngestError(
            f"{source.origin}: row {row} has label {source.labels[row]}, but the recipe names {len(class_names)} "
            "classes; correct data.class_names in params.yaml, or the source"
        )
    images = np.ascontiguousarray(source.images)
    identity = pd.DataFrame(
        {
            "split": np.where(source.is_test, "test", "train"),
            "label": source.labels.astype(np.int64),
            "class_name": np.asarray(class_names)[source.labels],
            "hash": [hashlib.sha256(image).hexdigest() for image in images],
        }
    ).sort_values(["hash", "label", "split"])
    order = identity.index.to_numpy()
    images = images[order]
    manifest = pd.concat([identity.reset_index(drop=True), describe(images)], axis=1)
    return images, source.labels[order], manifest


def describe(images: np.ndarray) -> pd.DataFrame:
    """Return shape, type and pixel statistics of each image, a row per image.

    `images` is uint8 (n, height, width, 3); means and standard deviations are on the scale 0 to 1. Sums are integers
    until the last step, so that every machine gives the same digits.
    """
    count, height, width, channels = images.shape
    low, high = np.empty(count, np.int64), np.empty(count, np.int64)
    mean, std = np.empty((count, channels)), np.empty((count, channels))
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        pixels = images[rows].reshape(-1, height * width, channels).astype(np.uint32)
        total = pixels.sum(axis=1, dtype=np.int64)
        squares = np.square(pixels).sum(axis=1, dtype=np.int64)
        low[rows], high[rows] = pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))
        mean[rows] = total / (height * width * 255)
        std[rows] = np.sqrt(height * width * squares - total**2) / (height * width * 255)
    columns: dict[str, Any] = {"height": height, "width": width, "channels": channels, "dtype": str(images.dtype)}
    columns |= {"pixel_min": low, "pixel_max": high}
    columns |= {f"mean_{name}": mean[:, channel] for channel, name in enumerate(CHANNELS)}
    columns |= {f"std_{name}": std[:, channel] for channel, name in enumerate(CHANNELS)}
    return pd.DataFrame(columns, index=range(count))


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


def _write(
    folder: Path, images: np.ndarray, labels: np.ndarray, manifest: pd.DataFrame, dataset: dict[str, Any]
) -> None:
    """Write all files beside `folder`, then move them into it.

    Raises IngestError if the disk is full or the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            fresh = Path(name)
            np.save(fresh / "images.npy", images)
            np.save(fresh / "labels.npy", labels)
            manifest.to_parquet(fresh / "manifest.parquet", index=False)
            (fresh / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
            for file in FILES:
                (fresh / file).replace(folder / file)
    except OSError as error:
        raise IngestError(
            f"the dataset could not be written to {folder} ({error}); the files that were there are unchanged; free "
            "disk space or correct the permissions, then run again"
        ) from error
