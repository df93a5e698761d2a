"""True classes that are known later: a CSV file `answer_id,truth`, matched with the record of answers.

Matched labels are kept, because the record keeps the newest answers only.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.monitoring.answers import Answers
from mobilenet_pipeline.workspace import files

ID, TRUTH = "answer_id", "truth"


class LabelsError(ValueError):
    """A file of labels cannot be used."""


@dataclass(frozen=True)
class Label:
    """The true class of an answer. `at` are the POSIX seconds of the answer."""

    answer_id: str
    at: float
    version: str
    predicted: str
    truth: str


@dataclass(frozen=True)
class Reading:
    """What a file of labels brought: its rows, and how many were new, of each kind that does not count, or changed."""

    rows: int
    matched: int
    unknown_answers: int
    unknown_classes: int
    duplicates: int
    corrections: int

    @property
    def sentence(self) -> str:
        """The counts, for people."""
        parts = [
            f"{self.matched:,} of {self.rows:,} labels match a recorded answer",
            *([f"{self.unknown_answers:,} have an unknown answer_id"] if self.unknown_answers else []),
            *([f"{self.unknown_classes:,} have an unknown class"] if self.unknown_classes else []),
            *([f"{self.duplicates:,} are duplicates"] if self.duplicates else []),
            *([f"{self.corrections:,} replace an earlier label"] if self.corrections else []),
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Day:
    """The accuracy on the labelled answers of one day (UTC), with its 95 % Wilson interval."""

    day: str
    right: int
    rows: int
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a version on its labelled answers, beside its test accuracy at promotion.

    `p` is the p-value of Fisher's exact one-sided test that the version is worse than on the test images (Fisher 1935).
    `is_worse`: it is significant, and the drop is at least the recipe's.
    """

    right: int
    rows: int
    low: float
    high: float
    promised: float
    p: float
    is_worse: bool
    days: list[Day]


def add(
    path: Path, known: Sequence[Label], answers: Answers, class_names: Sequence[str]
) -> tuple[list[Label], Reading]:
    """Return all labels, those of the file `path` included, and what the file brought.

    A label that differs from an earlier one of the same answer replaces it. Raises LabelsError, naming the file, if it
    cannot be read, lacks a column, or has no label that can be used.
    """
    kept = {label.answer_id: label for label in known}
    places = {name: row for row, name in enumerate(answers.ids) if name}
    rows, counts = _rows(path), Counter[str]()
    for name, truth in rows:
        before = kept.get(name)
        if before is None and name not in places:
            counts["unknown_answers"] += 1
        elif truth not in class_names:
            counts["unknown_classes"] += 1
        elif before is None:
            counts["matched"] += 1
            kept[name] = _label(answers, places[name], truth, class_names)
        elif before.truth == truth:
            counts["duplicates"] += 1
        else:
            counts["corrections"] += 1
            kept[name] = replace(before, truth=truth)
    reading = Reading(len(rows), **{kind.name: counts[kind.name] for kind in fields(Reading)[1:]})
    if rows and not reading.matched + reading.duplicates + reading.corrections:
        raise LabelsError(
            f"{path}: none of its {len(rows):,} labels can be used: {reading.unknown_answers:,} have an {ID} that is "
            f"not in the record, {reading.unknown_classes:,} have a {TRUTH} that is not one of "
            f"{', '.join(class_names)}; take the {ID} from the answers of the service"
        )
    return list(kept.values()), reading


def _label(answers: Answers, row: int, truth: str, class_names: Sequence[str]) -> Label:
    predicted = int(answers.predicted[row])
    return Label(
        answer_id=str(answers.ids[row]),
        at=float(answers.at[row]),
        version=str(answers.versions[row]),
        predicted=class_names[predicted] if predicted >= 0 else "",
        truth=truth,
    )


def _rows(path: Path) -> list[tuple[str, str]]:
    remedy = f"give a CSV file with the columns {ID} and {TRUTH}, a line for each answer"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in (ID, TRUTH) if name not in (table.fieldnames or ())]
            if missing:
                has = ", ".join(table.fieldnames or ()) or "none"
                raise LabelsError(f"{path} has no column {' and no column '.join(missing)} (it has: {has}); {remedy}")
            return [((row[ID] or "").strip(), (row[TRUTH] or "").strip()) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{path} cannot be read ({error}); {remedy}") from None


def accuracy(labels: Sequence[Label], version: str, promised: float, rows: int, limits: Monitoring) -> Accuracy | None:
    """Return the accuracy of `version` on its labels, by day too; None without labels.

    `promised` is its accuracy on `rows` test images.
    """
    own = [label for label in labels if label.version == version]
    if not own:
        return None
    right = sum(label.predicted == label.truth for label in own)
    p = _p_worse(right, len(own), round(promised * rows), rows)
    drop = promised - right / len(own)
    interval = scores.wilson_interval(right, len(own))
    is_worse = p < limits.significance and drop >= limits.accuracy_drop
    return Accuracy(right, len(own), *interval, promised, p, is_worse, _by_day(own))


def _by_day(labels: Sequence[Label]) -> list[Day]:
    days: dict[str, list[bool]] = {}
    for label in sorted(labels, key=lambda label: label.at):
        day = datetime.fromtimestamp(label.at, UTC).date().isoformat()
        days.setdefault(day, []).append(label.predicted == label.truth)
    return [Day(day, sum(hits), len(hits), *scores.wilson_interval(sum(hits), len(hits))) for day, hits in days.items()]


def _p_worse(right: int, rows: int, expected_right: int, expected_rows: int) -> float:
    from scipy.stats import fisher_exact

    table = [[right, rows - right], [expected_right, expected_rows - expected_right]]
    return float(fisher_exact(table, alternative="less").pvalue)


def proposal(found: Accuracy, version: str, recipe: str) -> str | None:
    """Return a sentence that proposes to roll back, None if the version is not worse than at promotion."""
    if not found.is_worse:
        return None
    share = found.right / found.rows
    return (
        f"Version {version} is right in {share:.1%} of {found.rows:,} labelled answers (95 % interval {found.low:.1%} "
        f"to {found.high:.1%}), and was right in {found.promised:.1%} of its test images: it is significantly worse "
        f'(p = {found.p:.2g}). Consider: mobilenet-pipeline rollback --recipe {recipe} --reason "worse in service"'
    )


def read(path: Path) -> list[Label]:
    """Return the kept labels, none without a file. Raises LabelsError, naming the file, if it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            Label(row["answer_id"], float(row["at"]), row["version"], row["predicted"], row["truth"]) for row in rows
        ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise LabelsError(f"{path} is damaged ({error!r}); delete it, and give the files with labels again") from None


def write(path: Path, labels: Sequence[Label]) -> None:
    """Replace the kept labels."""
    with files.whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [one.name for one in fields(Label)])
        table.writeheader()
        table.writerows(asdict(label) for label in labels)
