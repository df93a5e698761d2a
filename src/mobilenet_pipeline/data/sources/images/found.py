"""What is found at a path: a row for each image, a line for each problem, and a way to the bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

Content = Path | bytes | np.ndarray
"""An image: its file, its bytes, or its pixels uint8 (h, w, 3)."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Names of ready-made splits."""


class Record(NamedTuple):
    """An image: a name for people, its class, its ready-made split and its group; empty where there is none."""

    name: str
    label: str
    split: str = ""
    group: str = ""


class Problem(NamedTuple):
    """A line for people: the file or folder, a word for programs, and a sentence."""

    name: str
    kind: str
    sentence: str


@dataclass
class Found:
    """The images of one source.

    `contents` yields an image for each record, in the records' order. `class_names` is empty if the source does not
    order its classes.
    """

    form: str
    records: list[Record]
    problems: list[Problem]
    contents: Callable[[], Iterator[Content]]
    class_names: list[str] = field(default_factory=list)

    @property
    def names_validation(self) -> bool:
        """Whether there are ready-made validation images."""
        return any(record.split == VALIDATION for record in self.records)


def split_of(name: str) -> str | None:
    """Return the split that a folder or a cell names: "train", "validation", "test", or None."""
    return SPLITS.get(name.strip().lower())


def natural(names: set[str] | list[str]) -> list[str]:
    """Return the names in order; names that are all whole numbers in the order of the numbers."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))
