"""The record of answers, read into arrays: what the service has answered, when, and what it failed to answer."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from mobilenet_pipeline.inference import statistics

SINGLE = "/predict"
"""The endpoint of single images; only their latency is comparable."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers for n images, in the order of time; all arrays are (n,), `statistics` is (n, k).

    `at` are POSIX seconds. `predicted` are indexes of the class names, -1 for an unknown class. `milliseconds` is NaN
    for images of batches and comparisons. `first` tells the first image of each request. The lines of an older record
    have the id "", and NaN for what they lack.
    """

    at: np.ndarray
    ids: np.ndarray
    versions: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    milliseconds: np.ndarray
    first: np.ndarray
    statistics: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    def between(self, start: float, end: float) -> Self:
        """Return the answers from `start` to before `end`."""
        return self._part(slice(*np.searchsorted(self.at, (start, end))))

    def of(self, version: str) -> Self:
        """Return the answers of a version."""
        return self._part(self.versions == version)

    def _part(self, part: slice | np.ndarray) -> Self:
        return type(self)(**{one.name: getattr(self, one.name)[part] for one in fields(self)})


@dataclass(frozen=True, eq=False)
class Record:
    """What the record holds: the answers of all versions, and the failed requests, in the order of time.

    `statuses` (m,) are HTTP statuses at the times `failed_at` (m,). `damaged` counts lines that cannot be read.
    """

    answers: Answers
    failed_at: np.ndarray
    statuses: np.ndarray
    damaged: int

    def failures(self, start: float, end: float) -> np.ndarray:
        """Return the statuses from `start` to before `end`."""
        return self.statuses[slice(*np.searchsorted(self.failed_at, (start, end)))]


def read(folder: Path, model: str, class_names: Sequence[str]) -> Record:
    """Read the files `answers-*.jsonl*` in `folder` and below it; the lines of other models than `model` do not count.

    A line that cannot be read is counted: a killed service leaves the beginning of one.
    """
    places = {name: index for index, name in enumerate(class_names)}
    rows, failures, damaged = [], [], 0
    for line in _lines(folder):
        try:
            document = orjson.loads(line)
            at = datetime.fromisoformat(document["at"]).timestamp()
            if document["model_name"] != model:
                continue
            if "status" in document:
                failures.append((at, int(document["status"])))
            else:
                rows.append((at, *_row(document, places)))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            damaged += 1
    rows.sort(key=lambda row: row[0])
    failures.sort()
    return Record(
        answers=_answers(rows),
        failed_at=np.array([at for at, _ in failures], float),
        statuses=np.array([status for _, status in failures], int),
        damaged=damaged,
    )


def _lines(folder: Path) -> Iterator[bytes]:
    seen = set[tuple[int, int]]()
    for path in sorted(folder.rglob("answers-*.jsonl*")):
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                place = facts.st_dev, facts.st_ino
                if place not in seen:  # the service renames a full file, perhaps after it was read
                    seen.add(place)
                    yield from file
        except FileNotFoundError:  # the service has renamed it meanwhile
            continue


def _row(document: dict[str, Any], places: dict[str, int]) -> tuple[Any, ...]:
    name = str(document.get("answer_id", ""))
    confidence = document.get("confidence")
    if confidence is None:
        confidence = max(document["probabilities"].values())
    single = document["endpoint"] == SINGLE
    mean, spread = document["mean"], document["spread"]
    if len(mean) != 3 or len(spread) != 3:
        raise ValueError("a line without three colours")
    measured = [document.get(key, np.nan) for key in statistics.MEASURED[2:]]
    return (
        name,
        str(document["model_version"]),
        places.get(document["class"], -1),
        float(confidence),
        float(document.get("ms", np.nan)) if single else np.nan,
        not name.partition("-")[2] or name.endswith("-0"),
        [*mean, *spread, *measured],
    )


def _answers(rows: Sequence[tuple[Any, ...]]) -> Answers:
    at, ids, versions, predicted, confidence, milliseconds, first, measured = (
        zip(*rows, strict=True) if rows else [()] * 8
    )
    numbers = np.array(measured, float).reshape(len(rows), 6 + len(statistics.MEASURED) - 2)
    columns = dict(zip(statistics.MEASURED[2:], numbers[:, 6:].T, strict=True))
    return Answers(
        at=np.array(at, float),
        ids=np.array(ids, object),
        versions=np.array(versions, object),
        predicted=np.array(predicted, int),
        confidence=np.array(confidence, float),
        milliseconds=np.array(milliseconds, float),
        first=np.array(first, bool),
        statistics=statistics.table({"mean": numbers[:, :3], "spread": numbers[:, 3:6], **columns}),
    )
