import numpy as np
import pytest

from serving import record
from serving.record import Answer, Record, describe


def test_a_line_has_the_mean_and_the_spread_of_each_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels[1, :, :, 2] = 255
    prediction = {"class": "cat", "probabilities": {"cat": np.float32(1)}}
    answers = [
        Answer("/predict", {}, [prediction], pixels[:1]),
        Answer("/predict_batch", {}, [prediction] * 2, pixels[1:]),
    ]
    lines = list(describe(answers, keep_images=False))
    assert [line["endpoint"] for line in lines] == ["/predict", "/predict_batch", "/predict_batch"]
    for line, image in zip(lines, pixels, strict=True):
        assert line["mean"] == pytest.approx(image.mean(axis=(0, 1)), abs=0.006)
        assert line["spread"] == pytest.approx(image.std(axis=(0, 1)), abs=0.006)


def test_an_image_of_one_colour_has_no_spread() -> None:
    answer = Answer("/predict", {}, [{"class": "cat", "probabilities": {}}], np.full((1, 32, 32, 3), 250, np.uint8))
    (line,) = describe([answer], keep_images=False)
    assert (line["mean"], line["spread"]) == ([250.0] * 3, [0.0] * 3)


def test_answers_wait_up_to_a_bound_and_those_beyond_are_counted_as_lost(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(record, "SECONDS", 3600)
    lost = []
    monkeypatch.setattr(record.measures, "count_unrecorded", lost.append)
    kept = Record(tmp_path / "answers.jsonl")
    answer = Answer("/predict", {}, [{"class": "cat", "probabilities": {}}], np.zeros((1, 32, 32, 3), np.uint8))
    for _ in range(record.WAITING + 1):
        kept.add(answer)
    kept.write()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == record.WAITING
    assert lost == [1]
