from io import BytesIO
from pathlib import Path
from typing import Any

import bench_rows
import numpy as np
import pytest
from PIL import Image

LABELS = np.arange(900, 910)


def pixels() -> np.ndarray:
    """Return the pictures of `LABELS` as pixels uint8 (n, h, w, 3)."""
    drawn = bench_rows.pictures(LABELS, np.random.default_rng(0), 1.0)
    return np.stack([np.asarray(Image.open(BytesIO(data))) for data in drawn])


def rows(exponent: float, *sizes: int) -> dict[int, dict[str, float]]:
    return {size: {"cpu_seconds": 0.001 * size**exponent} for size in sizes}


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_growth_is_the_exponent_of_the_processor_time(exponent: float) -> None:
    assert bench_rows.growth(rows(exponent, 250, 500, 1000)) == exponent


def test_one_size_has_no_growth() -> None:
    assert bench_rows.growth(rows(1.0, 250)) is None


def test_pictures_are_distinct() -> None:
    assert len({picture.tobytes() for picture in pixels()}) == len(LABELS)


def test_a_planted_model_finds_the_class_in_the_picture(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes((0).to_bytes(8) + b"1.00")
    answers = bench_rows.Planted(tmp_path / "model.tflite").predict(pixels())
    assert answers.argmax(axis=1).tolist() == LABELS.tolist()


def test_a_planted_model_is_right_as_often_as_it_is_sure(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes((0).to_bytes(8) + b"0.70")
    answers = bench_rows.Planted(tmp_path / "model.tflite").predict(np.repeat(pixels(), 200, axis=0))
    right = answers.argmax(axis=1) == np.repeat(LABELS, 200)
    assert answers.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.03)


def measured(size: int, *stages: str) -> list[dict[str, Any]]:
    row = {
        "images": size,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "peak_mib": 100,
        "date": "2026-01-01",
        "commit": "c" * 40,
    }
    return [{"stage": stage} | row for stage in stages]


def test_stages_that_prepare_others_are_no_stages_of_the_results() -> None:
    document = bench_rows.results(measured(10, "-pictures", "report"))
    assert document["million_rows_peak_mib"] == {"report": 100}


def test_a_size_without_its_last_stage_is_not_in_the_results() -> None:
    assert bench_rows.results([*measured(10, "ingest", "report"), *measured(20, "ingest")])["sizes"] == [10]
