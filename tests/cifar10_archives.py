"""Tiny CIFAR-10 archives for the tests: 50 images to train, 10 to test, in both official formats."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from mobilenet_pipeline import config

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
ROWS = 10


class Images:
    """Random `pixels` uint8 (60, 3072), plane by plane like CIFAR-10, and `labels` (60,); the last ten are the test."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 256, (6 * ROWS, 3072), dtype=np.uint8)
        self.labels = np.tile(np.arange(10, dtype=np.uint8), 6)

    def shuffled(self) -> "Images":
        """The same images in another order within train and within test."""
        other, rng = Images(), np.random.default_rng(1)
        order = np.concatenate([rng.permutation(5 * ROWS), 5 * ROWS + rng.permutation(ROWS)])
        other.pixels, other.labels = self.pixels[order], self.labels[order]
        return other

    def rgb(self) -> np.ndarray:
        """The same as (60, 32, 32, 3)."""
        return self.pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def digest(self) -> str:
        """The digest by its definition."""
        splits = ["train"] * 5 * ROWS + ["test"] * ROWS
        rows = zip(self.rgb(), self.labels, splits, strict=True)
        lines = sorted((hashlib.sha256(image.tobytes()).hexdigest(), int(label), split) for image, label, split in rows)
        return hashlib.sha256("".join(f"{a} {b} {c}\n" for a, b, c in lines).encode()).hexdigest()

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(zip(np.split(self.pixels, 6), np.split(self.labels, 6), strict=True))


def recipe_for(images: Images, recipe: config.Recipe) -> config.Recipe:
    """`recipe`, expecting these images."""
    train = images.rgb()[: 5 * ROWS] / 255
    facts = {
        "digest": images.digest(),
        "train_rows": 5 * ROWS,
        "test_rows": ROWS,
        "channel_mean": train.mean(axis=(0, 1, 2)).tolist(),
        "channel_std": train.std(axis=(0, 1, 2)).tolist(),
        "channel_tolerance": 1e-9,
    }
    return with_data(recipe, **facts)


def with_data(recipe: config.Recipe, **facts: object) -> config.Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=facts)})


def binary_members(images: Images) -> dict[str, bytes]:
    """The official binary version: a row is a label byte and 3,072 pixels."""
    members = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    for name, (pixels, labels) in zip(BATCHES, images.batches(), strict=True):
        members[f"cifar-10-batches-bin/{name}.bin"] = np.column_stack([labels, pixels]).tobytes()
    return members


def python_members(images: Images) -> dict[str, bytes]:
    """The official python version: pickles that Python 2 wrote."""
    members = {"cifar-10-batches-py/readme.html": b"<html>"}
    for name, (pixels, labels) in zip(BATCHES, images.batches(), strict=True):
        members[f"cifar-10-batches-py/{name}"] = python2_pickle(pixels, labels)
    return members


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """What Python 2 and its NumPy wrote at protocol 2: strings are bytes, which Python 3 has no way to write."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    shape = b"M" + len(pixels).to_bytes(2, "little") + b"M" + pixels.shape[1].to_bytes(2, "little") + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    )
    content = b"T" + pixels.size.to_bytes(4, "little") + pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"K\x00tb\x89" + content + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    fields = short(b"batch_label") + short(b"training batch") + short(b"labels") + numbers + short(b"data") + array
    return b"\x80\x02}(" + fields + b"u."


def write_tar(path: Path, members: dict[str, bytes], compression: str = "gz") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
