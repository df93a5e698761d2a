"""True classes that are known later."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.monitoring import labels
from mobilenet_pipeline.monitoring.answers import Answers
from mobilenet_pipeline.monitoring.labels import Label, LabelsError

NAMES = ["cat", "dog", "fish", "bird"]


@pytest.fixture
def answers(answered: Callable[..., Answers]) -> Answers:
    """Ten answers, all of them "cat", with the ids 0 to 9."""
    return answered(10, ids=np.array([str(name) for name in range(10)], object), predicted=np.zeros(10, int))


def file_of(folder: Path, *rows: str, head: str = "answer_id,truth") -> Path:
    path = folder / "truth.csv"
    path.write_text("\n".join([head, *rows]))
    return path


def of(right: int, rows: int) -> list[Label]:
    """Return labels of version 3, `right` of them right, ten a day."""
    return [Label(f"{i}", 8640.0 * i, "3", "cat", "cat" if i < right else "dog") for i in range(rows)]


def test_labels_match_their_answers(tmp_path: Path, answers: Answers) -> None:
    matched, reading = labels.add(file_of(tmp_path, "0,cat", "1,dog"), [], answers, NAMES)
    assert [(label.predicted, label.truth, label.version) for label in matched] == [
        ("cat", "cat", "3"),
        ("cat", "dog", "3"),
    ]
    assert reading.sentence == "2 of 2 labels match a recorded answer"


def test_what_does_not_count_is_counted(tmp_path: Path, answers: Answers) -> None:
    rows = ("0,cat", "0,cat", "0,dog", "99,cat", "1,Mars")
    matched, reading = labels.add(file_of(tmp_path, *rows), [], answers, NAMES)
    assert [label.truth for label in matched] == ["dog"]
    assert reading.sentence == (
        "1 of 5 labels match a recorded answer, 1 have an unknown answer_id, 1 have an unknown class, "
        "1 are duplicates, 1 replace an earlier label"
    )


def test_a_file_that_matches_nothing_is_refused(tmp_path: Path, answers: Answers) -> None:
    with pytest.raises(LabelsError, match=r"truth\.csv: none of its 2 labels can be used: 1 have an answer_id"):
        labels.add(file_of(tmp_path, "99,cat", "1,Mars"), [], answers, NAMES)


@pytest.mark.parametrize(
    ("head", "what"), [("id,truth", "answer_id (it has: id, truth)"), ("", "answer_id and no column truth")]
)
def test_a_file_without_a_column_is_refused(tmp_path: Path, answers: Answers, head: str, what: str) -> None:
    with pytest.raises(LabelsError) as refused:
        labels.add(file_of(tmp_path, "0,cat", head=head), [], answers, NAMES)
    assert f"truth.csv has no column {what}" in str(refused.value)
    assert "give a CSV file with the columns answer_id and truth" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path, answers: Answers) -> None:
    with pytest.raises(LabelsError, match=r"none\.csv cannot be read"):
        labels.add(tmp_path / "none.csv", [], answers, NAMES)


def test_a_label_of_a_forgotten_answer_is_kept(tmp_path: Path, answers: Answers) -> None:
    labels.write(tmp_path / "labels.csv", of(1, 2))
    known = labels.read(tmp_path / "labels.csv")
    assert known == of(1, 2)
    corrected, _ = labels.add(file_of(tmp_path, "1,cat"), known, answers.between(0, 0), NAMES)
    assert corrected[1].truth == "cat"


def test_the_accuracy_has_a_day_with_its_interval_each(limits: Monitoring) -> None:
    found = labels.accuracy(of(18, 20), "3", promised=0.9, rows=1000, limits=limits)
    assert found is not None
    assert [(day.day, day.right, day.rows) for day in found.days] == [("1970-01-01", 10, 10), ("1970-01-02", 8, 10)]
    assert found.days[1].low < 0.8 < found.days[1].high
    assert not found.is_worse


def test_a_champion_that_is_worse_than_promised_is_proposed_for_rollback(limits: Monitoring) -> None:
    found = labels.accuracy(of(70, 100), "3", promised=0.9, rows=1000, limits=limits)
    assert found is not None
    proposal = labels.proposal(found, "3", "digits")
    assert proposal is not None
    assert proposal.startswith("Version 3 is right in 70.0% of 100 labelled answers")
    assert 'mobilenet-pipeline rollback --recipe digits --reason "worse in service"' in proposal


def test_a_small_drop_is_no_reason_to_roll_back(limits: Monitoring) -> None:
    found = labels.accuracy(of(89_500, 100_000), "3", promised=0.9, rows=1_000_000, limits=limits)
    assert found is not None
    assert found.p < 0.001
    assert not found.is_worse


def test_labels_of_other_versions_do_not_count(limits: Monitoring) -> None:
    assert labels.accuracy(of(1, 2), "4", promised=0.9, rows=1000, limits=limits) is None
