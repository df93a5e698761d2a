"""The report page `reports/RECIPE/index.html`: one self-contained HTML file about the outputs of the stages."""

import base64
import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation.predictions import read_predictions
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.reports import costs, figures, verdict_figures
from mobilenet_pipeline.reports.candidate_figures import draw_mistakes
from mobilenet_pipeline.reports.results import results_path
from mobilenet_pipeline.workspace import history, paths
from mobilenet_pipeline.workspace.files import write_text

CHECKS = 30
"""Of a verdict with more checks, those that passed are folded."""


@dataclass(frozen=True)
class Contents:
    """The recipe's files that the page shows. A missing file is None or empty, and its path is in `missing`."""

    dataset: dict[str, Any] | None
    images: np.ndarray | None
    labels: np.ndarray | None
    validation: dict[str, Any] | None
    near_duplicates: dict[str, Any] | None
    verdict: Verdict | None
    candidates: dict[str, dict[str, Any]]
    histories: dict[str, dict[str, list[float]]]
    predictions: dict[str, dict[str, np.ndarray]]
    champions: list[tuple[str, str, float]]
    decisions: list[history.Event]
    costs: list[dict[str, str]]
    has_data_docs: bool
    missing: list[str]


def write_report(recipe: config.Recipe, workspace: Path) -> Path:
    """Write `reports/RECIPE/index.html` and return its path.

    The page lists missing files. Raises ValueError, naming the file, if a file cannot be read.
    """
    contents = gather(recipe, workspace)
    page = render(recipe, contents)
    path = paths.report_folder(recipe, workspace) / "index.html"
    write_text(path, page)
    return path


def gather(recipe: config.Recipe, workspace: Path) -> Contents:
    """Read the recipe's files in `workspace`.

    Raises ValueError, naming the file, if a file cannot be read.
    """
    data, reports, stages = paths.data_folder(recipe), paths.report_folder(recipe), results_path(recipe)
    folders = {name: paths.model_folder(recipe, name) for name in recipe.artefacts}
    trained = {name: paths.model_folder(recipe, it.candidate) for name, it in recipe.artefacts.items()}
    optional = _Optional(workspace)
    candidates = {
        name: {
            "metrics": optional.json(paths.metrics_path(recipe, name)),
            "training": optional.json(trained[name] / "training.json"),
            "export": optional.json(folder / "export.json"),
        }
        for name, folder in folders.items()
    }
    histories = {name: optional.columns(paths.model_folder(recipe, name) / "history.csv") for name in recipe.candidates}
    predictions = {name: optional.predictions(folder / "predictions.npz") for name, folder in folders.items()}
    verdict, events = optional.verdict(reports / "verdict.json"), history.read(recipe, workspace)
    return Contents(
        dataset=optional.json(data / "dataset.json"),
        images=optional.array(data / "images.npy"),
        labels=optional.array(data / "labels.npy"),
        validation=optional.json(reports / "validation.json"),
        near_duplicates=optional.json(paths.near_duplicates_path(recipe)),
        verdict=verdict,
        candidates=candidates,
        histories={name: columns for name, columns in histories.items() if columns},
        predictions={name: arrays for name, arrays in predictions.items() if arrays},
        champions=[(event.version, event.at[:10], event.accuracy) for event in events if event.makes_champion],
        decisions=_decisions(verdict, events),
        costs=costs.table((optional.json(stages) or {}).get("stages", [])) if (workspace / stages).exists() else [],
        has_data_docs=(workspace / reports / "data_docs" / "index.html").exists(),
        missing=optional.missing,
    )


def render(recipe: config.Recipe, contents: Contents) -> str:
    """Return the page as HTML with its figures. All names are escaped."""
    from jinja2 import Environment, StrictUndefined  # a tenth of a second, which `status` does not need

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "count": "{:,}".format, "interval": _interval}
    template = resources.files("mobilenet_pipeline").joinpath("reports", "page.html.j2").read_text(encoding="utf-8")
    scored = {name: files["metrics"] for name, files in contents.candidates.items() if files["metrics"]}
    return environment.from_string(template).render(
        recipe=recipe,
        contents=contents,
        scored=scored,
        shown_classes=scores.shown_classes(metrics["confusion_matrix"] for metrics in scored.values())
        if scored
        else [],
        other_kinds=next((it["unfamiliar"]["other_images"] for it in scored.values() if it.get("unfamiliar")), {}),
        stale=_is_stale(contents),
        compared=_compared(recipe, scored),
        folded=contents.verdict is not None and len(contents.verdict.checks) > CHECKS,
        colours=figures.palette(recipe.artefacts),
        figures={name: base64.b64encode(png).decode("ascii") for name, png in draw(recipe, contents).items()},
    )


def draw(recipe: config.Recipe, contents: Contents) -> dict[str, bytes]:
    """Return the page's figures as {name: PNG bytes}; without data, no figure."""
    names, drawn = recipe.data.class_names, {}
    if contents.images is not None and contents.labels is not None:
        drawn["samples"] = figures.sample_sheet(contents.images, contents.labels, names)
    twins = (contents.near_duplicates or {}).get("pairs")
    if contents.images is not None and twins:
        drawn["near_twins"] = figures.twin_sheet(contents.images, twins)
    if contents.histories:
        for quantity in ("loss", "accuracy"):
            drawn[f"{quantity}_curve"] = figures.learning_curves(contents.histories, [quantity])
    matrices = {
        name: files["metrics"]["confusion_matrix"] for name, files in contents.candidates.items() if files["metrics"]
    }
    if matrices:
        drawn["class_accuracy"] = figures.accuracy_per_class(matrices, names)
    for name, matrix in matrices.items():
        drawn[f"{name}_confusion"] = figures.confusion_matrices({name: matrix}, names)
    for second, first in _compared(recipe, matrices).items():
        drawn[f"{second}_difference"] = verdict_figures.confusion_difference(
            matrices[first], matrices[second], f"{second} minus {first}", names
        )
    if contents.predictions:
        answers = {name: (arrays["probabilities"], arrays["labels"]) for name, arrays in contents.predictions.items()}
        drawn["reliability"] = verdict_figures.reliability(answers)
    corrupted = {
        name: files["metrics"]["corruptions"]
        for name, files in contents.candidates.items()
        if files["metrics"] and files["metrics"].get("corruptions")
    }
    if corrupted:
        drawn["corruptions"] = verdict_figures.corruptions(corrupted)
    for key, figure in (("prediction_sets", verdict_figures.set_sizes), ("unfamiliar", verdict_figures.unfamiliar)):
        found = {
            name: files["metrics"][key]
            for name, files in contents.candidates.items()
            if files["metrics"] and files["metrics"].get(key)
        }
        if found:
            drawn[key] = figure(found)
    if contents.champions:
        drawn["champions"] = verdict_figures.champions(contents.champions)
    for name, arrays in contents.predictions.items():
        if contents.images is not None:
            drawn[f"{name}_mistakes"] = draw_mistakes(contents.images, arrays, names)
    return drawn


def _compared(recipe: config.Recipe, names: Iterable[str]) -> dict[str, str]:
    """Return which other model each is compared with: a twin with its candidate, a candidate with the one before."""
    listed = [name for name in recipe.artefacts if name in set(names)]
    candidates = [name for name in listed if name in recipe.candidates]
    twins = {name: recipe.artefacts[name].candidate for name in listed if name not in candidates}
    return dict(zip(candidates[1:], candidates, strict=False)) | {
        twin: candidate for twin, candidate in twins.items() if candidate in candidates
    }


def _decisions(verdict: Verdict | None, events: list[history.Event]) -> list[history.Event]:
    """Return the people's decisions after the verdict, the oldest first."""
    since = verdict and verdict.judged_at
    return [event for event in events if since and event.at >= since and event.what not in ("promoted", "found")]


def _is_stale(contents: Contents) -> bool:
    """Return whether the verdict is about earlier evaluations than the workspace's."""
    verdict = contents.verdict
    if not verdict:
        return False
    return any(
        files["metrics"]
        and (
            files["metrics"]["data_digest"] != verdict.data_digest
            or name not in verdict.candidates
            or files["metrics"]["test"]["accuracy"] != verdict.candidates[name].accuracy
        )
        for name, files in contents.candidates.items()
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _interval(accuracy: float | None, rows: int) -> str:
    if accuracy is None:
        return "no images"
    low, high = scores.wilson_interval(round(accuracy * rows), rows)
    return f"{low * 100:.1f}–{high:.1%}"


class _Optional:
    """Reads files that may be missing, and collects the missing paths."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.missing: list[str] = []

    def json(self, path: Path) -> dict[str, Any] | None:
        if not self._exists(path):
            return None
        try:
            return json.loads((self.workspace / path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); delete it and run its stage again") from None

    def array(self, path: Path) -> np.ndarray | None:
        if not self._exists(path):
            return None
        try:
            return np.load(self.workspace / path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is not a NumPy array ({error}); delete it and run its stage again") from None

    def columns(self, path: Path) -> dict[str, list[float]] | None:
        if not self._exists(path):
            return None
        with (self.workspace / path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else {})}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has a value that is not a number ({error}); run its stage again") from None

    def verdict(self, path: Path) -> Verdict | None:
        if not self._exists(path):
            return None
        return Verdict.from_json((self.workspace / path).read_text(encoding="utf-8", errors="replace"), str(path))

    def predictions(self, path: Path) -> dict[str, np.ndarray] | None:
        return read_predictions(self.workspace / path) if self._exists(path) else None

    def _exists(self, path: Path) -> bool:
        exists = (self.workspace / path).exists()
        if not exists:
            self.missing.append(path.as_posix())
        return exists
