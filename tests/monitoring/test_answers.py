"""Reading the record of answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_pipeline.inference import statistics
from mobilenet_pipeline.monitoring import answers as record
from mobilenet_pipeline.monitoring.answers import Record, read
from serving.record import Answer, Fault, answer_ids, describe, describe_fault

NAMES = ["cat", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
OLD = {
    "at": "2026-11-29T10:00:00.000+00:00",
    "endpoint": "/predict",
    "model_name": "m",
    "model_version": "2",
    "class": "dog",
    "probabilities": {"cat": 0.25, "dog": 0.75},
    "mean": [10.0, 20.0, 30.0],
    "spread": [1.0, 1.0, 1.0],
}


def record_of(folder: Path, *lines: Any) -> Record:
    """Return the record with these lines; text is written as it is."""
    (folder / "3000").mkdir()
    texts = [line if isinstance(line, str) else json.dumps(line, default=float) for line in lines]
    (folder / "3000/answers-1.jsonl").write_text("\n".join(texts))
    return read(folder, "m", NAMES)


def answer(endpoint: str, count: int) -> Answer:
    predictions = [
        {"answer_id": name, "class": "cat", "confidence": 0.9, "probabilities": {"cat": 0.9, "dog": 0.1}}
        for name in answer_ids(count)
    ]
    return Answer(endpoint, {"model_name": "m", "model_version": "3"}, predictions, PIXELS[:count], 7.5, at=100.0)


def test_the_service_s_own_lines_are_read(tmp_path: Path) -> None:
    answers = record_of(tmp_path, *describe([answer("/predict", 1)], keep_images=False)).answers
    assert (answers.at[0], answers.versions[0], answers.predicted[0]) == (100.0, "3", 0)
    assert (answers.confidence[0], answers.milliseconds[0]) == (0.9, 7.5)
    assert answers.statistics == pytest.approx(statistics.table(statistics.measure(PIXELS[:1])), abs=0.02)


def test_a_batch_is_one_request_without_a_latency_of_its_images(tmp_path: Path) -> None:
    answers = record_of(tmp_path, *describe([answer("/predict_batch", 3)], keep_images=False)).answers
    assert answers.first.tolist() == [True, False, False]
    assert np.isnan(answers.milliseconds).all()


def test_a_line_from_before_the_statistics_is_read(tmp_path: Path) -> None:
    answers = record_of(tmp_path, OLD).answers
    assert (answers.ids[0], answers.predicted[0], answers.confidence[0]) == ("", 1, 0.75)
    assert answers.statistics[0, :3] == pytest.approx([20, 1, -20])
    assert np.isnan(answers.statistics[0, 3:]).all()


def test_failed_requests_are_read(tmp_path: Path) -> None:
    record = record_of(tmp_path, describe_fault(Fault("/predict", "m", 503, at=100.0)))
    assert record.failures(100, 101).tolist() == [503]
    assert record.failures(0, 100).tolist() == []


def test_failed_requests_of_another_model_do_not_count(tmp_path: Path) -> None:
    record = record_of(tmp_path, describe_fault(Fault("/predict", "another", 500)))
    assert (len(record.statuses), record.damaged) == (0, 0)


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", "{}", json.dumps({**OLD, "mean": [1.0]}), json.dumps({**OLD, "at": "x"})]
)
def test_a_damaged_line_is_counted(tmp_path: Path, line: str) -> None:
    record = record_of(tmp_path, OLD, line)
    assert (len(record.answers), record.damaged) == (1, 1)


def test_files_of_all_workers_are_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "answers-1.jsonl.1").write_text(json.dumps({**OLD, "at": "2026-11-29T09:00:00+00:00"}))
    answers = record_of(tmp_path, OLD, {**OLD, "model_version": "3"}).answers
    assert (np.diff(answers.at) >= 0).all()
    assert [len(answers), len(answers.of("2"))] == [3, 2]


def test_a_file_that_is_renamed_meanwhile_is_read_once(tmp_path: Path) -> None:
    newest, older = tmp_path / "answers-1.jsonl", tmp_path / "answers-1.jsonl.1"
    newest.write_text("new\n")
    older.write_text("old\n")
    lines = record._lines(tmp_path)
    read_first = next(lines)
    older.rename(tmp_path / "answers-1.jsonl.2")
    newest.rename(older)
    assert [read_first, *lines].count(b"new\n") == 1


def test_answers_of_another_model_in_the_same_folder_do_not_count(tmp_path: Path) -> None:
    record = record_of(tmp_path, OLD, {**OLD, "model_name": "another"})
    assert (len(record.answers), record.damaged) == (1, 0)


def test_there_may_be_no_record(tmp_path: Path) -> None:
    assert len(read(tmp_path / "missing", "m", NAMES).answers) == 0
