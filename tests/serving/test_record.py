"""The record of answers: its lines, its bounds, and what the running service writes."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import wait_until

from mobilenet_pipeline.inference import statistics
from serving import record
from serving.record import Answer, Fault, Record, answer_ids, describe

Encode = Callable[..., bytes]
CAT = {"class": "cat", "probabilities": {"cat": np.float32(1)}}


def answer(pixels: np.ndarray, endpoint: str = "/predict") -> Answer:
    return Answer(endpoint, {}, [CAT] * len(pixels), pixels, milliseconds=1.5)


def first_line(folder: Path) -> dict[str, Any]:
    file = folder / "answers-1.jsonl"
    wait_until(lambda: file.exists() and file.stat().st_size)
    return dict(json.loads(file.read_text().splitlines()[0]))


@pytest.mark.parametrize("size", [32, 100])
def test_a_line_has_mean_and_spread_of_each_colour(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    pixels[1, :, :, 2] = 255
    lines = list(describe([answer(pixels[:1]), answer(pixels[1:], "/predict_batch")], keep_images=False))
    assert [line["endpoint"] for line in lines] == ["/predict", "/predict_batch", "/predict_batch"]
    for line, image in zip(lines, pixels, strict=True):
        assert line["mean"] == pytest.approx(image.mean(axis=(0, 1)), abs=0.006)
        assert line["spread"] == pytest.approx(image.std(axis=(0, 1)), abs=0.006)


@pytest.mark.parametrize("size", [32, 224])
def test_an_image_of_one_colour_has_no_spread(size: int) -> None:
    (line,) = describe([answer(np.full((1, size, size, 3), 250, np.uint8))], keep_images=False)
    assert (line["mean"], line["spread"]) == ([250.0] * 3, [0.0] * 3)


def test_a_line_has_every_measurement_and_the_latency() -> None:
    (line,) = describe([answer(np.full((1, 32, 32, 3), 9, np.uint8))], keep_images=False)
    assert {*line} >= {*statistics.MEASURED}
    assert line["ms"] == 1.5


def test_the_images_of_a_batch_have_ids_of_one_request() -> None:
    (first,), batch = answer_ids(1), answer_ids(3)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert batch == [f"{batch[0].removesuffix('-0')}-{index}" for index in range(3)]


def test_failed_requests_are_recorded_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SECONDS", 3600)
    monkeypatch.setattr(record, "WAITING_FAULTS", 1)
    lost: list[int] = []
    monkeypatch.setattr(record.measures, "count_unrecorded", lost.append)
    kept = Record(tmp_path / "answers.jsonl")
    for _ in range(2):
        kept.fail(Fault("/predict", "m", 503))
    kept.write()
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert ((document := json.loads(line))["endpoint"], document["status"], lost) == ("/predict", 503, [1])


def test_an_error_of_the_disk_is_logged_when_it_begins_or_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "SECONDS", 3600)
    monkeypatch.setattr(logging.getLogger("bentoml"), "propagate", True)
    failing = Record(tmp_path / "answers.jsonl")
    errors = iter(["full", "full", "gone", "", "full"])

    def emit(_: object) -> None:
        if error := next(errors):
            raise OSError(error)

    monkeypatch.setattr(failing.handler, "emit", emit)
    for _ in range(5):
        failing.fail(Fault("/predict", "m", 503))
        failing.write()
    told = [f"answers are not recorded in {failing.path}: {error}" for error in ("full", "gone", "full")]
    assert caplog.messages == told


def test_answers_of_two_image_shapes_are_described() -> None:
    small, large = np.full((1, 20, 20, 3), 20, np.uint8), np.full((2, 32, 32, 3), 32, np.uint8)
    lines = describe([answer(small), answer(large), answer(small)], keep_images=True)
    assert [line["mean"][0] for line in lines] == [20, 32, 32, 20]


def test_answers_beyond_the_bound_are_counted_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SECONDS", 3600)
    lost: list[int] = []
    monkeypatch.setattr(record.measures, "count_unrecorded", lost.append)
    full = Record(tmp_path / "answers.jsonl")
    fitting = record.WAITING_BYTES // (32 * 32 * 3)
    for _ in range(fitting + 1):
        full.add(answer(np.zeros((1, 32, 32, 3), np.uint8)))
    full.write()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == fitting
    assert lost == [1]


def test_one_large_answer_is_always_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SECONDS", 3600)
    monkeypatch.setattr(record, "WAITING_BYTES", 100)
    empty = Record(tmp_path / "answers.jsonl")
    empty.add(answer(np.zeros((2, 32, 32, 3), np.uint8)))
    empty.write()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


def test_an_answer_is_recorded_without_its_image(
    filled_bento_store: Path, start: Any, encode: Encode, tmp_path: Path
) -> None:
    with start(filled_bento_store, SERVING_RECORD=str(tmp_path / "record")) as service:
        prediction = service.ask("POST", "/predict", files={"image": encode()}).json()
        line = first_line(tmp_path / "record")
    assert (line["class"], line["model_version"], line["endpoint"]) == (prediction["class"], "2", "/predict")
    assert (line["answer_id"], line["confidence"]) == (prediction["answer_id"], prediction["confidence"])
    assert line["ms"] > 0
    assert len(line["mean"]) == len(line["spread"]) == 3
    assert "pixels" not in line


def test_a_stopping_service_records_all_answers_and_refusals(
    filled_bento_store: Path, start: Any, encode: Encode, tmp_path: Path
) -> None:
    files = [("images", encode()), ("images", b"no image")]
    with start(filled_bento_store, SERVING_RECORD=str(tmp_path / "record")) as service:
        for _ in range(20):
            assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
        service.ask("POST", "/predict", files={"image": b"no image"})
        service.ask("POST", "/predict_batch", files=files)
        service.ask("GET", "/predict")
    lines = [json.loads(line) for line in (tmp_path / "record" / "answers-1.jsonl").read_text().splitlines()]
    assert len({line["answer_id"] for line in lines if "class" in line}) == 21
    assert {line["model_name"] for line in lines} == {"cifar10-mobilenet"}
    refused = [(line["endpoint"], line["status"]) for line in lines if "status" in line]
    assert sorted(refused) == [("/predict", 400), ("/predict_batch", 400)]


def test_images_are_recorded_on_request(filled_bento_store: Path, start: Any, encode: Encode, tmp_path: Path) -> None:
    variables = {"SERVING_RECORD": str(tmp_path / "record"), "SERVING_KEEP_IMAGES": "1"}
    with start(filled_bento_store, **variables) as service:
        service.ask("POST", "/predict", files={"image": encode()})
        assert re.fullmatch(r"[A-Za-z0-9+/]{4096}", first_line(tmp_path / "record")["pixels"])


def test_a_failing_record_fails_no_request(
    filled_bento_store: Path, start: Any, encode: Encode, tmp_path: Path
) -> None:
    (tmp_path / "record" / "answers-1.jsonl").mkdir(parents=True)  # a folder in the place of the file
    with start(filled_bento_store, SERVING_RECORD=str(tmp_path / "record")) as service:
        assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
        assert wait_until(lambda: service.counted("mobilenet_unrecorded_answers_total")) == 1
