"""A dataset on disk, opened: what ingestion wrote, for every later stage to read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

IMAGE_SHAPE = (32, 32, 3)
FILES = ("images.npy", "labels.npy", "manifest.parquet", "dataset.json")


class DatasetError(ValueError):
    """A folder that does not hold a whole dataset."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """`images` uint8 (n, 32, 32, 3) RGB, memory-mapped; `labels` uint8 (n,); `is_test` bool (n,).

    `overlap` is how many test images are among the training images, too.
    """

    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    digest: str
    class_names: list[str]
    overlap: int


def open_dataset(folder: Path) -> Dataset:
    """What `ingest` wrote into `folder`; the images stay on disk until they are read.

    Raises DatasetError when files are missing, unreadable or not of one and the same ingestion.
    """
    remedy = f"ingest the recipe again (mobilenet-pipeline run --recipe {folder.name})"
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise DatasetError(f"{folder} is no dataset, it lacks {', '.join(missing)}; {remedy}")
    try:
        dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        manifest = pd.read_parquet(folder / "manifest.parquet", columns=["hash", "label", "split"])
        images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        expected, class_names = dataset["digest"], dataset["class_names"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DatasetError(f"{folder} cannot be read ({error}); {remedy}") from error
    whole = (
        images.shape == (len(manifest), *IMAGE_SHAPE)
        and np.array_equal(labels, manifest["label"])
        and digest(manifest) == expected
        and all(hashlib.sha256(images[row]).hexdigest() == manifest["hash"].iloc[row] for row in (0, -1))
    )
    if not whole:
        raise DatasetError(f"the files in {folder} do not belong together; {remedy}")
    is_test = (manifest["split"] == "test").to_numpy()
    overlap = int(manifest["hash"][is_test].isin(manifest["hash"][~is_test]).sum())
    return Dataset(images, labels, is_test, expected, class_names, overlap)


def changed_rows(folder: Path) -> int:
    """How many images of the dataset in `folder` are not those of its manifest any more; all are read."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    hashes = pd.read_parquet(folder / "manifest.parquet", columns=["hash"])["hash"]
    return sum(hashlib.sha256(image).hexdigest() != wanted for image, wanted in zip(images, hashes, strict=True))


def digest(manifest: pd.DataFrame) -> str:
    """SHA-256 over a line `hash label split` for every row of a manifest in its order."""
    identity = zip(manifest["hash"], manifest["label"], manifest["split"], strict=True)
    return hashlib.sha256(
        "".join(f"{hash_} {label} {split}\n" for hash_, label, split in identity).encode()
    ).hexdigest()
