from pathlib import Path

import page
import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", ["training.md", "speed.md", "../explanation/scale.md"])
def test_the_page_shows_the_measured_results(name):
    text = (RESULTS / name).read_text(encoding="utf-8")
    assert page.filled(text, RESULTS) == text


def test_a_study_is_compared_with_its_first_row():
    figures = {"million_multiply_adds": 45.3, "epochs": 3, "cpu_minutes": 8.4, "train_accuracy": 0.9}
    rows = [
        {"changes": {}, "validation_accuracy": 0.92} | figures,
        {"changes": {"flip": "random"}, "validation_accuracy": 0.915} | figures,
    ]
    assert page.study_table(rows).splitlines()[-1] == (
        "| `flip: random` | 45.3 M | 3 | 8.4 | 90.00% | 91.50% | -0.50 |"
    )


def test_a_candidate_is_compared_with_the_bar_of_its_recipe():
    row = {"candidate": "scratch", "recipe": "cifar10_30m", "cpu_minutes": 60.5, "test_accuracy": 0.913, "sd": None}
    runs = [{"git_commit": commit * 40} for commit in "aba"]
    table = page.accuracy_table([row | {"seeds": 3, "runs": runs}])
    assert "| 91.30% | 3 | 91.0% in 60 (exceeded by 0.5) | 92.0% | aaaaaaa, bbbbbbb |" in table


def test_a_recipe_of_other_images_has_no_bar():
    row = {"candidate": "scratch", "recipe": "digits", "cpu_minutes": 0.5, "test_accuracy": 0.97, "sd": None}
    table = page.accuracy_table([row | {"seeds": 1, "runs": [{"git_commit": "a" * 40}]}])
    assert "| 97.00% | 1 | – | – | aaaaaaa |" in table


def test_the_page_has_a_row_for_every_runtime():
    figures = {
        name: {
            "bytes": size,
            "one_image_ms": [milliseconds, 100.0, 0.0],
            "one_image_p99_ms": [3.0, 2.0, 4.0],
            "images_per_second": {"1": [1000 / milliseconds, 0.0, 9999.0]},
            "largest_difference": 0.002,
            "other_classes": 3,
            "accuracy": accuracy,
        }
        for name, size, milliseconds, accuracy in (
            ("litert_float32", 4000, 2.0, 0.9),
            ("litert_int8", 1000, 1.0, 0.895),
            ("keras", 5000, 40.0, 0.9),
        )
    }
    rows = page.runtimes_table({"cifar10/scratch": {"runtimes": figures}}).splitlines()
    assert len(rows) == 2 + len(figures)
    assert rows[3] == "| `cifar10/scratch` | LiteRT, int8 | 0.00 | 1 | 3 | 1000 | – | 2.0e-03 | 3 | 89.50% |"


@pytest.mark.parametrize(
    ("bar", "met"),
    [("value ≤ 5", "yes"), ("value ≤ 4", "no"), ("ratio ≥ 0.5", "yes"), ("ratio ≥ 0.6", "no"), ("", "–")],
)
def test_a_figure_is_compared_with_its_bar(bar: str, met: str):
    row = {
        "name": "run, seconds",
        "value": 5.0,
        "base": 10.0,
        "ratio": 0.5,
        "bar": bar,
        "command": "make bench-pipeline",
    }
    line = page.speed_table([row | {"date": "2026-11-30", "machine": "EPYC"}]).splitlines()[-1]
    assert line == f"| run, seconds | 5 | 10 | 0.5 | {bar or '–'} | {met} | `make bench-pipeline` | 2026-11-30 | EPYC |"
