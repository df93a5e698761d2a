"""Which of the decoded images make the dataset: duplicates, contradictions and splits. Every image left out is named.

The result depends on the images, their classes, splits and groups only, not on the names and the order of the files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images.decoding import Decoded
from mobilenet_pipeline.data.sources.images.found import TEST, TRAIN, VALIDATION, Found, Problem

LISTED = 5
"""Files that one sentence names."""
LEAST = 3
"""Images that a class needs: one to train, one for validation, one to test."""


@dataclass(frozen=True)
class Settled:
    """`rows` has a row for each image of the dataset: record, name, label (text), split, group, hash, statistics.

    `found` is the number of images of the source, `problems` are all lines for people, and `ready_made` is whether the
    source has test images of its own.
    """

    rows: pd.DataFrame
    found: int
    problems: list[Problem]
    ready_made: bool


def settle(
    found: Found, decoded: Decoded, class_names: Sequence[str] | None, test_share: float | None, seed: int
) -> Settled:
    """Return the dataset's images of a source.

    Without `class_names`, the classes are those with enough images. `test_share` and `seed` choose the test images if
    the source has none. Raises IngestError if no image is left.
    """
    problems = list(found.problems)
    problems += [Problem(found.records[fault.row].name, fault.kind, fault.sentence) for fault in decoded.faults]
    records = pd.DataFrame(found.records, columns=["name", "label", "split", "group"])
    rows = pd.concat([records, decoded.rows], axis=1).rename_axis("record").reset_index()
    # Of the training images, the pipeline holds out its own validation images.
    rows = rows[rows["hash"] != ""].replace({"split": {VALIDATION: TRAIN}})
    rows = _without_contradictions(rows, problems)
    rows = _without_duplicates(rows, problems)
    if class_names is not None:
        rows = _of_classes(rows, class_names, problems)
    if not len(rows):
        raise IngestError("no image is left: " + "; ".join(f"{line.name}: {line.sentence}" for line in problems[:3]))
    ready_made = bool((rows["split"] == TEST).any())
    if ready_made:
        rows.loc[rows["split"] == "", "split"] = TRAIN
    elif test_share is None:
        raise IngestError(
            "the images have no test split of their own; set data.test_share, such as 0.2, in params.yaml"
        )
    else:
        if class_names is None:  # a class that is too small for every part has no test image either
            rows = _of_enough(rows, problems)
        rows["split"] = np.where(hold_out_test(rows, test_share, seed), TEST, TRAIN)
    if class_names is None:
        rows = _on_both_sides(rows, problems)
        names = rows["label"].drop_duplicates()
        problems += [
            Problem(", ".join(same), "case", "these classes differ in capitals only; rename a folder if they are one")
            for _, same in names.groupby(names.str.casefold())
            if len(same) > 1
        ]
    size = len(found.records) + sum(problem.kind in NO_RECORD for problem in found.problems)
    return Settled(rows, size, problems, ready_made)


NO_RECORD = ("missing", "no_class", "incomplete", "outside", "split", "name")
"""Problems of a source whose image has no record."""


def hold_out_test(rows: pd.DataFrame, share: float, seed: int) -> np.ndarray:
    """Return which rows are for testing: about `share` of the images; a group is on one side.

    A number drawn from the hash of an image, or the name of its group, decides. So an image stays where it is when
    others are added or removed, and a champion never meets its training images as test images. Where a class would lack
    a side, the images with the nearest numbers change sides. Raises IngestError if that is not possible.
    """
    units = rows["group"].where(rows["group"] != "", rows["hash"])
    numbers = {unit: _number(f"{seed} {unit}") for unit in units.unique()}
    held = {unit for unit, number in numbers.items() if number < share}
    of_class = {label: sorted({*own}, key=numbers.__getitem__) for label, own in units.groupby(rows["label"])}
    for label, members in of_class.items():
        if len(members) < LEAST:
            what = "groups of images" if (rows["group"] != "").any() else "images"
            raise IngestError(f"{label} has {len(members)} {what}; it needs {LEAST}, to train, validate and test")
        held.add(members[0])
        held -= {*members[1 - LEAST :]}
    for label, members in of_class.items():
        if not held & {*members} or len({*members} - held) < LEAST - 1:
            raise IngestError(f"no split by groups has images of {label} on both sides; add groups")
    return units.isin(held).to_numpy()


def _number(text: str) -> float:
    """Return a number from 0 to 1 that follows from the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13


def _without_contradictions(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Leave out images that have the same pixels under different labels: nobody knows which label is right."""
    labels = rows.groupby("hash")["label"].transform("nunique")
    for _, same in rows[labels > 1].groupby("hash"):
        listed = "; ".join(f"{name} is {label}" for name, label in zip(same["name"], same["label"], strict=True))
        listed = listed if len(same) <= LISTED else f"{len(same):,} files"
        sentence = f"the same pixels have several labels, and all are left out: {listed}"
        problems += [Problem(name, "two_labels", sentence) for name in same["name"]]
    return rows[labels == 1]


def _without_duplicates(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Keep one of the images with the same pixels: for testing rather than training, and of the first group by name.

    One of a group comes before one of none, because the split must know the group of these pixels.
    """
    order = rows.assign(training=rows["split"] != TEST, alone=rows["group"] == "")
    order = order.sort_values(["training", "alone", "group", "name"], kind="stable")
    first = order.drop_duplicates("hash").set_index("hash")
    copies = order[order["hash"].duplicated()].sort_values("record")
    for copy in copies.to_dict("records"):
        original = first.loc[copy["hash"]]
        kind = "duplicate" if copy["split"] == original["split"] else "across_splits"
        where = "" if kind == "duplicate" else f" of the {original['split'] or TRAIN} images"
        problems.append(Problem(copy["name"], kind, f"it has the pixels of {original['name']}{where}, and is left out"))
    return rows[rows["record"].isin(first["record"])].copy()


def _of_classes(rows: pd.DataFrame, class_names: Sequence[str], problems: list[Problem]) -> pd.DataFrame:
    known = rows["label"].isin(list(class_names))
    for label, count in rows["label"][~known].value_counts().items():
        sentence = f"{count:,} {_images(count)} of this class, which is not in class_names, left out"
        problems.append(Problem(str(label), "not_in_recipe", sentence))
    return rows[known].copy()


def _of_enough(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Leave out classes with too few images, or with too few groups, for three parts."""
    units = rows["group"].where(rows["group"] != "", rows["hash"])
    count, parts = rows.groupby("label").size(), units.groupby(rows["label"]).nunique()
    small = [label for label in count.index if parts[label] < LEAST]
    for label in small:
        what = f"{count[label]:,} {_images(count[label])}"
        what += (
            f" in {parts[label]:,} {'group' if parts[label] == 1 else 'groups'}" if parts[label] < count[label] else ""
        )
        sentence = f"the class has {what}; it needs {LEAST}, to train, validate and test, and is left out"
        problems.append(Problem(label, "small_class", sentence))
    return rows[~rows["label"].isin(small)].copy()


def _on_both_sides(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Leave out classes that the ready-made splits have on one side only, or once for training."""
    counts = {split: rows[rows["split"] == split].groupby("label").size() for split in (TRAIN, TEST)}
    small = []
    for label in sorted(rows["label"].unique()):
        train, test = (int(counts[split].get(label, 0)) for split in (TRAIN, TEST))
        if train < LEAST - 1 or test < 1:
            small.append(label)
            what = f"{train:,} training and {test:,} test images; it needs {LEAST - 1} and 1, and is left out"
            problems.append(Problem(label, "small_class", f"the class has {what}"))
    return rows[~rows["label"].isin(small)].copy()


def _images(count: Any) -> str:
    return "image" if count == 1 else "images"
