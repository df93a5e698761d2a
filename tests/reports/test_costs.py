"""What stages cost."""

from typing import Any

import pytest

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.reports import costs
from mobilenet_pipeline.reports.costs import Price

RAN = {"wall_seconds": 36.0, "cpu_seconds": 60.0, "gpu_seconds": None, "peak_bytes": 2_000_000_000}


@pytest.fixture
def recipe(workspace: Any) -> Recipe:
    return load_recipe("digits")


def row(name: str, outcome: str = "ran", **changes: Any) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, **RAN, **changes}


@pytest.mark.parametrize(
    ("setting", "price"),
    [
        ("0.48 EUR", Price(0.48, "EUR")),
        ("3 $", Price(3.0, "$")),
        (" 12.5 Swiss francs ", Price(12.5, "Swiss francs")),
        ("0€", Price(0.0, "€")),
        ("", None),
    ],
)
def test_a_price_has_a_number_and_a_currency(
    monkeypatch: pytest.MonkeyPatch, setting: str, price: Price | None
) -> None:
    monkeypatch.setenv(costs.SETTING, setting)
    assert costs.price_per_hour() == price


@pytest.mark.parametrize("setting", ["0,48 EUR", "-1 EUR", "EUR", "0.48", "nan EUR", "EUR 0.48", "1e3 EUR", "1 EUR 2"])
def test_another_price_is_refused_with_the_value(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(costs.SETTING, setting)
    with pytest.raises(ValueError, match=f"{costs.SETTING} is '{setting}'; give .* 0.48 EUR"):
        costs.price_per_hour()


def test_a_stage_costs_its_share_of_an_hour() -> None:
    assert costs.measures(row("a"), Price(5.0, "EUR"))["price"] == pytest.approx(0.05)


def test_what_a_stage_took_is_kept_until_it_runs_again(recipe: Recipe) -> None:
    costs.note(recipe, row("a"), None)
    costs.note(recipe, row("b", wall_seconds=1.0), None)
    costs.note(recipe, row("a", "unchanged", wall_seconds=0.1), None)
    costs.note(recipe, row("b", wall_seconds=2.0), None)
    assert {name: kept["wall_seconds"] for name, kept in costs.known(recipe).items()} == {"a": 36.0, "b": 2.0}


def test_a_damaged_file_of_costs_is_written_anew(recipe: Recipe) -> None:
    costs._path(recipe, costs.HERE).parent.mkdir(parents=True)
    costs._path(recipe, costs.HERE).write_text('{"a": ')
    costs.note(recipe, row("b"), None)
    assert [*costs.known(recipe)] == ["b"]


def test_the_table_ends_with_the_total() -> None:
    rows = costs.table([row("a"), row("b", "unchanged", wall_seconds=1.0, peak_bytes=10_000_000)])
    assert rows == [
        {"stage": "a", "outcome": "ran", "wall seconds": "36.0", "CPU seconds": "60.0", "peak memory": "2.00 GB"},
        {"stage": "b", "outcome": "unchanged", "wall seconds": "1.0", "CPU seconds": "60.0", "peak memory": "0.01 GB"},
        {"stage": "total", "outcome": "", "wall seconds": "37.0", "CPU seconds": "120.0", "peak memory": "2.00 GB"},
    ]


def test_a_total_of_which_a_part_is_unknown_is_unknown() -> None:
    unknown = dict.fromkeys(costs.MEASURES)
    *_, total = costs.table([row("a", price=0.05, currency="EUR"), row("b", "restored") | unknown])
    assert {*total.values()} == {"total", "", "–"}


def test_the_table_has_gpu_and_price_if_a_stage_has_them() -> None:
    money = {"price": 0.05, "currency": "EUR"}
    first, second, total = costs.table([row("a", gpu_seconds=9.0, **money), row("b")])
    assert (first["GPU seconds"], second["GPU seconds"], total["GPU seconds"]) == ("9.0", "–", "9.0")
    assert (first["price"], second["price"], total["price"]) == ("0.0500 EUR", "–", "–")


def test_the_price_of_all_stages_has_their_currency() -> None:
    money = {"price": 0.05, "currency": "Swiss francs"}
    assert costs.table([row("a", **money), row("b", **money)])[-1]["price"] == "0.1000 Swiss francs"


def test_prices_in_two_currencies_have_no_total() -> None:
    rows = [row("a", price=0.05, currency="EUR"), row("b", price=0.05, currency="$")]
    assert costs.table(rows)[-1]["price"] == "–"


def test_mlflow_gets_a_metric_for_each_known_measure(recipe: Recipe) -> None:
    metrics = costs.metrics(recipe, [row("train@digits-scratch", price=0.05, currency="EUR"), row("ingest@digits")])
    assert metrics["cost/train-scratch/price"] == 0.05
    assert metrics["cost/ingest/peak_bytes"] == 2e9
    assert metrics["cost/total/wall_seconds"] == 72.0
    assert "cost/ingest/gpu_seconds" not in metrics
