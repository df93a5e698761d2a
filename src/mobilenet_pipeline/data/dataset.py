"""Open a dataset that ingestion wrote. Every later stage reads the data this way."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

FILES = ("images.npy", "labels.npy", "manifest.parquet", "dataset.json")


class DatasetError(ValueError):
    """A folder has no complete dataset."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """`images` uint8 (n, h, w, 3) RGB, memory-mapped; `labels` uint16 (n,); `is_test` bool (n,).

    `groups` (n,) are names, such as patients, that a split keeps together; None without groups. `overlap` is the number
    of test images that are also training images.
    """

    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    digest: str
    class_names: list[str]
    overlap: int
    groups: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def open_dataset(folder: Path) -> Dataset:
    """Return the dataset that `ingest` wrote into `folder`, memory-mapped.

    Raises DatasetError if files are missing, unreadable, or from different ingestions.
    """
    remedy = f"ingest the recipe again (mobilenet-pipeline run --recipe {folder.name})"
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise DatasetError(f"{folder} is not a dataset: it lacks {', '.join(missing)}; {remedy}")
    try:
        dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        manifest = pd.read_parquet(folder / "manifest.parquet", columns=["hash", "label", "split", "group"])
        images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        expected, class_names, shape = dataset["digest"], dataset["class_names"], dataset["image_shape"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DatasetError(f"{folder} cannot be read ({error}); {remedy}") from error
    whole = (
        images.shape == (len(manifest), *shape)
        and np.array_equal(labels, manifest["label"])
        and digest(manifest) == expected
        and all(hashlib.sha256(images[row]).hexdigest() == manifest["hash"].iloc[row] for row in (0, -1))
    )
    if not whole:
        raise DatasetError(f"the files in {folder} do not belong together; {remedy}")
    is_test = (manifest["split"] == "test").to_numpy()
    overlap = int(manifest["hash"][is_test].isin(manifest["hash"][~is_test]).sum())
    groups = manifest["group"].to_numpy(str) if (manifest["group"] != "").any() else None
    return Dataset(images, labels, is_test, expected, class_names, overlap, groups)


def changed_rows(folder: Path) -> int:
    """Return how many images in `folder` do not match the manifest's hashes.

    It reads all images.
    """
    images = np.load(folder / "images.npy", mmap_mode="r")
    hashes = pd.read_parquet(folder / "manifest.parquet", columns=["hash"])["hash"]
    pairs = zip(images, hashes, strict=True)
    return sum(hashlib.sha256(image).hexdigest() != expected for image, expected in pairs)


def digest(manifest: pd.DataFrame) -> str:
    """Return the SHA-256, hex, of the manifest.

    The digest is over a line `hash label split` for each row, in the manifest's order. The group follows if the image
    has one.
    """
    lines = hashlib.sha256()
    for row in zip(manifest["hash"], manifest["label"], manifest["split"], manifest["group"], strict=True):
        lines.update((" ".join(map(str, row)).rstrip(" ") + "\n").encode())
    return lines.hexdigest()
