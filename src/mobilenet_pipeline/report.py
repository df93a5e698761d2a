"""What the stages wrote to one page for people: `reports/RECIPE/index.html`, without anything outside itself."""

import base64
import csv
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from mobilenet_pipeline import config, evaluation, figures, history, layout, metrics, verdict_figures


@dataclass(frozen=True)
class Evidence:
    """Every file of one recipe that the page draws on; what is not there yet is None or empty, and listed."""

    dataset: dict[str, Any] | None
    images: np.ndarray | None
    labels: np.ndarray | None
    validation: dict[str, Any] | None
    verdict: dict[str, Any] | None
    candidates: dict[str, dict[str, Any]]
    histories: dict[str, dict[str, list[float]]]
    predictions: dict[str, dict[str, np.ndarray]]
    champions: list[tuple[str, str, float]]
    decisions: list[history.Event]
    has_data_docs: bool
    missing: list[str]


def write_report(recipe: config.Recipe, workspace: Path) -> Path:
    """Write `reports/RECIPE/index.html` from the files of `workspace` and return its path.

    Files that are not there yet are named on the page. Raises ValueError naming a file that is there and cannot be
    read.
    """
    evidence = gather(recipe, workspace)
    page = render(recipe, evidence)
    path = layout.report_folder(recipe, workspace) / "index.html"
    with layout.whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def gather(recipe: config.Recipe, workspace: Path) -> Evidence:
    """Read the recipe's files under `workspace`. Raises ValueError naming a file that cannot be read."""
    data, reports = layout.data_folder(recipe), layout.report_folder(recipe)
    folders = {name: layout.model_folder(recipe, name) for name in config.CANDIDATES}
    optional = _Optional(workspace)
    candidates = {
        name: {
            "metrics": optional.json(layout.metrics_path(recipe, name)),
            "training": optional.json(folder / "training.json"),
            "export": optional.json(folder / "export.json"),
        }
        for name, folder in folders.items()
    }
    histories = {name: optional.columns(folder / "history.csv") for name, folder in folders.items()}
    predictions = {name: optional.predictions(folder / "predictions.npz") for name, folder in folders.items()}
    verdict, events = optional.json(reports / "verdict.json"), history.read(recipe, workspace)
    return Evidence(
        dataset=optional.json(data / "dataset.json"),
        images=optional.array(data / "images.npy"),
        labels=optional.array(data / "labels.npy"),
        validation=optional.json(reports / "validation.json"),
        verdict=verdict,
        candidates=candidates,
        histories={name: columns for name, columns in histories.items() if columns},
        predictions={name: arrays for name, arrays in predictions.items() if arrays},
        champions=[(event.version, event.at[:10], event.accuracy) for event in events if event.makes_champion],
        decisions=_decisions(verdict, events),
        has_data_docs=(workspace / reports / "data_docs" / "index.html").exists(),
        missing=optional.missing,
    )


def render(recipe: config.Recipe, evidence: Evidence) -> str:
    """The page as HTML, figures included; every name in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "count": "{:,}".format, "interval": _interval}
    template = resources.files("mobilenet_pipeline").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        recipe=recipe,
        evidence=evidence,
        scored={name: files["metrics"] for name, files in evidence.candidates.items() if files["metrics"]},
        stale=_is_stale(evidence),
        colours=figures.COLOURS,
        figures={name: base64.b64encode(png).decode("ascii") for name, png in draw(recipe, evidence).items()},
    )


def draw(recipe: config.Recipe, evidence: Evidence) -> dict[str, bytes]:
    """The page's figures that there is data for, as PNG bytes by name."""
    names, drawn = recipe.data.class_names, {}
    if evidence.images is not None and evidence.labels is not None:
        drawn["samples"] = figures.sample_sheet(evidence.images, evidence.labels, names)
    if evidence.histories:
        for quantity in ("loss", "accuracy"):
            drawn[f"{quantity}_curve"] = figures.learning_curves(evidence.histories, [quantity])
    matrices = {
        name: files["metrics"]["confusion_matrix"] for name, files in evidence.candidates.items() if files["metrics"]
    }
    if matrices:
        drawn["class_accuracy"] = figures.accuracy_per_class(matrices, names)
    for name, matrix in matrices.items():
        drawn[f"{name}_confusion"] = figures.confusion_matrices({name: matrix}, names)
    if len(matrices) == 2:
        first, second = matrices
        drawn["confusion_difference"] = verdict_figures.confusion_difference(
            matrices[first], matrices[second], f"{second} less {first}", names
        )
    if evidence.predictions:
        answers = {name: (told["probabilities"], told["labels"]) for name, told in evidence.predictions.items()}
        drawn["reliability"] = verdict_figures.reliability(answers)
    corrupted = {
        name: files["metrics"]["corruptions"]
        for name, files in evidence.candidates.items()
        if files["metrics"] and files["metrics"].get("corruptions")
    }
    if corrupted:
        drawn["corruptions"] = verdict_figures.corruptions(corrupted)
    if evidence.champions:
        drawn["champions"] = verdict_figures.champions(evidence.champions)
    for name, told in evidence.predictions.items():
        if evidence.images is not None:
            drawn[f"{name}_mistakes"] = _draw_mistakes(evidence.images, told, names)
    return drawn


def _draw_mistakes(images: np.ndarray, told: dict[str, np.ndarray], class_names: list[str]) -> bytes:
    rows, labels, probabilities = told["rows"], told["labels"], told["probabilities"]
    # Only the images that are shown are read from the memory-mapped file.
    shown = figures.most_confident_mistakes(labels, probabilities)
    return figures.worst_mistakes(images[rows[shown]], labels[shown], probabilities[shown], class_names)


def _decisions(verdict: dict[str, Any] | None, events: list[history.Event]) -> list[history.Event]:
    """What people decided after the verdict, the oldest first."""
    since = (verdict or {}).get("judged_at")
    return [each for each in events if since and each.at >= since and each.what not in ("promoted", "found")]


def _is_stale(evidence: Evidence) -> bool:
    """Whether the verdict is about other evaluations than those that lie in the workspace now."""
    verdict = evidence.verdict
    if not verdict:
        return False
    return any(
        files["metrics"]
        and (
            files["metrics"]["data_digest"] != verdict["data_digest"]
            or files["metrics"]["test"]["accuracy"] != verdict["candidates"][name]["accuracy"]
        )
        for name, files in evidence.candidates.items()
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _interval(accuracy: float | None, rows: int) -> str:
    if accuracy is None:
        return "no images"
    low, high = metrics.wilson_interval(round(accuracy * rows), rows)
    return f"{low * 100:.1f}–{high:.1%}"


class _Optional:
    """Reads files that may not be there yet, and remembers which were not."""

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
            raise ValueError(f"{path} holds what is not a number ({error}); run its stage again") from None

    def predictions(self, path: Path) -> dict[str, np.ndarray] | None:
        return evaluation.read_predictions(self.workspace / path) if self._exists(path) else None

    def _exists(self, path: Path) -> bool:
        found = (self.workspace / path).exists()
        if not found:
            self.missing.append(path.as_posix())
        return found
