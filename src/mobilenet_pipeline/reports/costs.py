"""What the stages of a recipe cost: seconds, memory and, with a price per hour, money.

`reports/RECIPE/costs.json` keeps what each stage took when it ran last, also if a later stage of that run failed.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json, write_json
from mobilenet_pipeline.workspace.paths import HERE

SETTING = "MOBILENET_PIPELINE_PRICE_PER_HOUR"
"""The variable with the price of an hour of this machine, such as `0.48 EUR`."""
MEASURES = ("wall_seconds", "cpu_seconds", "gpu_seconds", "peak_bytes", "price", "currency")
"""What a row of a stage has beside its name and its outcome; None if it is unknown."""
TOTAL = "total"


@dataclass(frozen=True)
class Price:
    """The price of an hour, in a currency that is called as the user calls it."""

    amount: float
    currency: str


def price_per_hour() -> Price | None:
    """Return the price of an hour of this machine, None without a setting.

    Raises ValueError if the setting is not a number and a currency.
    """
    setting = os.environ.get(SETTING, "").strip()
    if not setting:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([^\d\s.,+-][^\d]{0,19})", setting)
    if not match:
        raise ValueError(
            f"{SETTING} is {setting!r}; give the price of an hour as a number with a decimal point, and a currency: "
            "0.48 EUR"
        )
    return Price(float(match[1]), match[2].strip())


def measures(row: Mapping[str, Any], price: Price | None) -> dict[str, Any]:
    """Return the measures of a stage that ran, with the price of its wall time."""
    money = {"price": row["wall_seconds"] / 3600 * price.amount, "currency": price.currency} if price else {}
    return {key: {**row, **money}.get(key) for key in MEASURES}


def note(recipe: Recipe, row: Mapping[str, Any], price: Price | None, workspace: Path = HERE) -> None:
    """Keep the measures of a stage, if it ran."""
    if row["outcome"] == "ran":
        write_json(_path(recipe, workspace), known(recipe, workspace) | {row["name"]: measures(row, price)})


def known(recipe: Recipe, workspace: Path = HERE) -> dict[str, dict[str, Any]]:
    """Return the measures of each stage's last run, by its name; none if the file is missing or damaged."""
    try:
        return read_json(_path(recipe, workspace))
    except WorkspaceError:
        return {}


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over the stages, and the largest memory; None where a stage has no value, or another currency.

    A stage without GPU seconds had no GPU.
    """
    complete = {key: [row[key] for row in rows] for key in MEASURES if all(row.get(key) is not None for row in rows)}
    complete["gpu_seconds"] = [row["gpu_seconds"] for row in rows if row.get("gpu_seconds") is not None]
    if len(set(complete.get("currency", ()))) != 1:
        complete |= {"price": [], "currency": []}
    combined = {key: max if key in ("peak_bytes", "currency") else sum for key in MEASURES}
    return {
        "name": TOTAL,
        **{key: combine(complete[key]) if complete.get(key) else None for key, combine in combined.items()},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a table of formatted text, a row per stage and one of the total.

    It has a column for GPUs, and one for the price, if one of the stages has the value.
    """
    everything = [*rows, total(rows)]
    columns = {
        "wall seconds": lambda row: _number(row.get("wall_seconds"), ",.1f"),
        "CPU seconds": lambda row: _number(row.get("cpu_seconds"), ",.1f"),
        "GPU seconds": lambda row: _number(row.get("gpu_seconds"), ",.1f"),
        "peak memory": lambda row: _number(row["peak_bytes"] / 1e9, ".2f") + " GB" if row.get("peak_bytes") else "–",
        "price": lambda row: f"{row['price']:,.4f} {row['currency']}" if row.get("price") is not None else "–",
    }
    for optional, key in (("GPU seconds", "gpu_seconds"), ("price", "price")):
        if all(row.get(key) is None for row in rows):
            del columns[optional]
    return [
        {"stage": str(row["name"]), "outcome": str(row.get("outcome", ""))}
        | {title: form(row) for title, form in columns.items()}
        for row in everything
    ]


def metrics(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the known measures as MLflow metrics, such as `cost/train-scratch/cpu_seconds`; a total included."""
    return {
        f"cost/{_short(recipe, row['name'])}/{key}": float(row[key])
        for row in (*rows, total(rows))
        for key in MEASURES
        if key != "currency" and row.get(key) is not None
    }


def _short(recipe: Recipe, stage: str) -> str:
    """Return the name of a stage without its recipe, for MLflow, which allows no `@`: `train-scratch`."""
    name, _, rest = stage.partition("@")
    candidate = next((it for it in recipe.artefacts if rest == f"{recipe.name}-{it}"), None)
    return f"{name}-{candidate}" if candidate else name


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _path(recipe: Recipe, workspace: Path) -> Path:
    return paths.report_folder(recipe, workspace) / "costs.json"
