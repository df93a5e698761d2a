"""The arithmetic of the service benchmark."""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import bench_serve
import load
import numpy as np
import pytest

FIGURES = {
    "batches": {"http": 900.0, "best": 1000.0},
    "equal_argmax": {"in_batches": "360/360", "one_by_one": "360/360"},
    "cold_start_seconds": [2.0, 9.0, 3.0],
}


def test_the_ratios_are_of_the_medians_with_eight_clients():
    eight = {"ours": [90.0, 80.0, 1.0], "noop": [100.0, 99.0, 500.0], "keras": [8.0], "savedmodel": [40.0]}
    requests = {
        name: {"8": {"requests_per_second": rates, "p99_ms": [12.0 if name == "ours" else 10.0]}}
        for name, rates in eight.items()
    }
    assert bench_serve.ratios(FIGURES | {"requests": requests}) == {
        "requests_to_noop_8_clients": 0.8,
        "requests_to_keras_8_clients": 10.0,
        "requests_to_savedmodel_8_clients": 2.0,
        "batch64_to_best_batch": 0.9,
        "p99_to_noop_8_clients": 1.2,
        "equal_argmax": "360/360",
        "cold_start_seconds": 3.0,
    }


def test_what_was_not_measured_has_no_ratio():
    silent = {"8": {"requests_per_second": [0.0], "p99_ms": [math.nan]}}
    requests = dict.fromkeys(("ours", "noop", "keras", "savedmodel"), silent)
    found = bench_serve.ratios(FIGURES | {"requests": requests, "batches": None, "equal_argmax": None})
    assert {name for name, value in found.items() if value is not None} == {"cold_start_seconds"}


def test_a_missing_answer_is_not_equal():
    assert bench_serve.equal(["cat", "dog", "dog"], ["cat", "cat"]) == (1, 3)


def test_figures_of_other_recipes_stay(tmp_path: Path):
    results = tmp_path / "serving.json"
    for recipe in ("digits", "cifar10"):
        chosen = argparse.Namespace(recipe=recipe, results=results, seconds=5.0, clients=[1, 8], soak=0)
        bench_serve.keep(chosen, {"ratios": recipe})
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert {name: found["ratios"] for name, found in kept.items()} == {"digits": "digits", "cifar10": "cifar10"}
    assert kept["digits"]["command"].endswith("--recipe digits --seconds 5 --clients 1 8")


def a_bench(**changes: object) -> bench_serve.Bench:
    """Return a benchmark without a service."""
    usual = {"tag": "", "folder": Path(), "metadata": {}, "keras": Path(), "made_up": True, "seconds": 1.0, "soak": 0}
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    return bench_serve.Bench(**{**usual, "pixels": pixels, "clients": [8], **changes})


def refuse_beyond_100(port: int, asked: bytes, per_second: float, seconds: float) -> load.Round:
    """Return the round of a service that answers 100 requests a second."""
    accepted = round(min(per_second, 100) * seconds)
    return load.Round([1.0] * accepted, seconds, Counter({load.REFUSED: round(per_second * seconds) - accepted}))


def test_overload_offers_multiples_of_the_capacity(monkeypatch):
    monkeypatch.setattr(bench_serve, "arrivals", refuse_beyond_100)
    bench = a_bench(seconds=2.0)
    found = bench_serve.overload(bench, 80, 100.0)
    assert [row["offered_per_second"] for row in found] == [50.0, 100.0, 200.0]
    assert [row["accepted_per_second"] for row in found] == [50.0, 100.0, 100.0]
    assert [row["refused_share"] for row in found] == [0.0, 0.0, 0.5]
    assert not bench.failures


def test_overload_counts_requests_without_a_connection(monkeypatch):
    monkeypatch.setattr(
        bench_serve, "arrivals", lambda *_: load.Round([1.0] * 3, 1.0, Counter({load.NO_CONNECTION: 1}))
    )
    bench = a_bench(seconds=1.0)
    assert [row["unsent_share"] for row in bench_serve.overload(bench, 80, 100.0)] == [0.25] * 3
    assert not bench.failures


def test_overload_names_other_failures(monkeypatch):
    lost = load.Round([1.0], 1.0, Counter({"the connection was closed": 2, load.REFUSED: 1, "status 503": 1}))
    monkeypatch.setattr(bench_serve, "arrivals", lambda *_: load.Round(lost.milliseconds, 1.0, Counter(lost.failures)))
    bench = a_bench(seconds=1.0)
    bench_serve.overload(bench, 80, 100.0)
    assert "ours at 2 times its capacity: 2 × the connection was closed" in bench.failures
    assert "ours at 2 times its capacity: 1 × status 503" in bench.failures
    assert len(bench.failures) == 6


@pytest.mark.parametrize(("held", "late"), [([9.0, *range(10, 20)], 5.0), ([9.0, *[12.5] * 10], 0.0)])
def test_late_growth_tells_a_leak_from_a_plateau(monkeypatch, held, late):
    monkeypatch.setattr(bench_serve, "arrivals", refuse_beyond_100)
    left = iter(held)
    monkeypatch.setattr(bench_serve, "resident", lambda _: next(left))
    found = bench_serve.watch_memory(a_bench(soak=1000), 80, None, 100.0)
    told = {"requests": 1000, "refused": 0, "per_second": 50.0}
    assert found == {**told, "mib": held, "late_growth_mib": late}
