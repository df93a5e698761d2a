"""A source becomes a dataset: arrays, and a manifest with a row an image; the same images give the same bytes."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilenet_pipeline import config, sources
from mobilenet_pipeline.images import FILES, IMAGE_SHAPE, digest
from mobilenet_pipeline.sources import IngestError, LabelledImages

CHANNELS = ("r", "g", "b")
CHUNK = 5_000  # images whose statistics are taken at a time, so that the wide integers stay small
LOADERS: dict[str, Callable[[], LabelledImages]] = {"digits": sources.load_digits, "cifar10": sources.load_cifar10}


def ingest(recipe: config.Recipe, folder: Path) -> dict[str, Any]:
    """Write the recipe's images as `images.npy`, `labels.npy`, `manifest.parquet` and `dataset.json` into `folder`.

    Rows are in the order of their content hashes, so an archive and a re-packed one give the same bytes. Returns what
    is in `dataset.json`. Raises IngestError, and leaves the last good files, when the images are not the recipe's.
    """
    found = LOADERS[recipe.data.source]()
    images, labels, manifest = arrange(found, recipe.data.class_names)
    counts = {split: int((manifest["split"] == split).sum()) for split in ("train", "test")}
    dataset: dict[str, Any] = {
        "digest": digest(manifest),
        "rows": counts,
        "class_names": recipe.data.class_names,
        "image_shape": list(IMAGE_SHAPE),
        "source": recipe.data.source,
    }
    _check(recipe, found.origin, dataset["digest"], counts)
    _write(folder, images, labels, manifest, dataset)
    return dataset


def arrange(found: LabelledImages, class_names: list[str]) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Images and labels in the order of (hash, label, split), and their manifest: row i describes image i."""
    if len(found.labels) and found.labels.max() >= len(class_names):
        row = int(found.labels.argmax())
        raise IngestError(
            f"{found.origin}: row {row} has label {found.labels[row]}, and the recipe names {len(class_names)} classes;"
            " correct data.class_names in params.yaml, or the source"
        )
    images = np.ascontiguousarray(found.images)
    identity = pd.DataFrame(
        {
            "split": np.where(found.is_test, "test", "train"),
            "label": found.labels.astype(np.int64),
            "class_name": np.asarray(class_names)[found.labels],
            "hash": [hashlib.sha256(image).hexdigest() for image in images],
        }
    ).sort_values(["hash", "label", "split"])
    order = identity.index.to_numpy()
    images = images[order]
    manifest = pd.concat([identity.reset_index(drop=True), describe(images)], axis=1)
    return images, found.labels[order], manifest


def describe(images: np.ndarray) -> pd.DataFrame:
    """Shape, type and pixel statistics of each of `images` uint8 (n, height, width, 3); mean and std on 0 to 1.

    Sums are whole numbers until the last step, so that every machine finds the same digits.
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


def _check(recipe: config.Recipe, origin: str, found: str, counts: dict[str, int]) -> None:
    data, key = recipe.data, f"recipes.{recipe.name}.data.digest"
    if not data.digest:
        raise IngestError(f"params.yaml: {key} is empty; if {origin} is what you want, set it to {found}")
    expected = {"train": data.train_rows, "test": data.test_rows}
    if (found, counts) == (data.digest, expected):
        return
    remedy = f"if these images are meant, set {key} and the row counts in params.yaml to what was found"
    if data.source == "cifar10":
        remedy = f"{sources.REMEDY}; {remedy}"
    raise IngestError(
        f"{origin} does not hold the images of recipe {recipe.name}: found digest {found} with {_rows(counts)},"
        f" expected {data.digest} with {_rows(expected)}; {remedy}"
    )


def _rows(counts: dict[str, int]) -> str:
    return f"{counts['train']:,} train and {counts['test']:,} test rows"


def _write(
    folder: Path, images: np.ndarray, labels: np.ndarray, manifest: pd.DataFrame, dataset: dict[str, Any]
) -> None:
    """All files are written in full beside `folder` before the first of them takes its place."""
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
            f"the dataset could not be written to {folder} ({error}); what was there before still is; make room"
            " or give the right to write, and run again"
        ) from error
