"""The picture of the monitoring: answers beside the reference, drift over time, and accuracy on labelled answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.reports.figures import BAD, DPI, FAINT, GOOD, INK, plain, png, style

# Matplotlib reads settings when it is imported, and `prefect worker` imports the flows before ours are in place.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS, FEW_BINS, FEW = 30, 15, 300
"""Bars of a histogram; with fewer answers than FEW, wider ones, which are less of noise."""
CLASSES = 12
"""The most classes that are drawn: of more, those whose shares have changed most."""
NAME = 24
"""The most characters of a class name."""
DAYS = 60
"""The most days of the accuracy."""
Samples = tuple[np.ndarray, np.ndarray]
"""Values of the reference, and of the answers."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What the picture shows.

    `drifted` has the names of quantities with an open alert. `windows` are (scale, start, end, drifted causes), the
    times POSIX seconds; `days` are (day, accuracy, low, high).
    """

    class_names: Sequence[str]
    statistics: Mapping[str, Samples]
    confidence: Samples
    predicted: Samples
    title: str
    drifted: Collection[str]
    windows: Sequence[tuple[str, float, float, Collection[str]]]
    causes: Sequence[str]
    days: Sequence[tuple[str, float, float, float]]
    promised: float


def draw(shown: Shown) -> bytes:
    """Return the picture as PNG.

    Grey is the reference, blue are the answers; orange are answers that have drifted.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 10.5), dpi=DPI * 0.7, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1, 0.95))
    quantities = {name.replace("_", " "): samples for name, samples in shown.statistics.items()}
    quantities["confidence"] = shown.confidence
    for place, (name, samples) in enumerate(quantities.items()):
        axes = figure.add_subplot(grid[place // 4, place % 4])
        _draw_distribution(axes, name, samples, name in shown.drifted)
    _draw_classes(figure.add_subplot(grid[1, 3]), shown)
    _draw_windows(figure.add_subplot(grid[2, : 2 if shown.days else 4]), shown)
    if shown.days:
        _draw_days(figure.add_subplot(grid[2, 2:]), shown)
    for axes in figure.axes:
        style(axes)
    figure.suptitle(plain(shown.title), fontsize=13, color=INK, x=0.01, ha="left")
    return png(figure)


def _colour(drifted: bool) -> str:
    return BAD if drifted else GOOD


def _head(axes: "Axes", title: str, drifted: bool) -> None:
    text = f"{title} – drifted" if drifted else title
    axes.set_title(plain(text), loc="left", fontweight="bold", fontsize=12, color=BAD if drifted else INK)


def _draw_distribution(axes: "Axes", name: str, samples: Samples, drifted: bool) -> None:
    expected, found = (values[~np.isnan(values)] for values in samples)
    both = np.concatenate([expected, found]) if found.size else expected
    low, high = np.percentile(both, [0.5, 99.5])
    # A statistic of grey images has one value.
    margin = 0.0 if high > low else 0.5
    edges = np.linspace(low - margin, high + margin, 1 + (BINS if found.size >= FEW else FEW_BINS))
    for values, filled in ((expected, True), (found, False)):
        if not values.size:
            continue
        share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / values.size
        if filled:
            axes.stairs(share, edges, fill=True, color=FAINT, label="test images")
        else:
            axes.stairs(share, edges, color=_colour(drifted), linewidth=2, label="answers")
    _head(axes, name, drifted)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    if not found.size:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=INK)


def _draw_classes(axes: "Axes", shown: Shown) -> None:
    count = len(shown.class_names)
    expected, found = (np.bincount(values[values >= 0], minlength=count) for values in shown.predicted)
    before, now = expected / max(1, expected.sum()), found / max(1, found.sum())
    order = list(range(count))
    if count > CLASSES:
        order = sorted(np.argsort(-np.abs(now - before), kind="stable")[:CLASSES].tolist())
    drifted = [f"class {shown.class_names[index]}" in shown.drifted for index in order]
    places = np.arange(len(order))
    axes.barh(places, before[order], 0.7, color=FAINT, label="test images")
    for place, index, bad in zip(places, order, drifted, strict=True):
        low, high = scores.wilson_interval(int(found[index]), int(found.sum()))
        axes.plot([low, high], [place, place], color=_colour(bad), linewidth=1.5)
        axes.plot([now[index]], [place], "o", color=_colour(bad), markersize=5)
    axes.set_yticks(places, [plain(shown.class_names[index][:NAME]) for index in order])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    title = "predicted classes" if count <= CLASSES else f"predicted classes, {CLASSES} of {count} that changed most"
    _head(axes, title, any(drifted))


def _draw_windows(axes: "Axes", shown: Shown) -> None:
    from matplotlib.dates import ConciseDateFormatter, date2num

    scales = sorted({scale for scale, *_ in shown.windows}, reverse=True)  # short above long
    height = 0.8 / max(1, len(scales))
    for scale, start, end, causes in shown.windows:
        left, right = (date2num(datetime.fromtimestamp(at, UTC)) for at in (start, end))
        for row, cause in enumerate(shown.causes):
            bottom = row - 0.4 + scales.index(scale) * height
            colour = BAD if cause in causes else FAINT
            # A gap of a fiftieth between windows.
            width = (right - left) * 0.98
            axes.broken_barh([(left, width)], (bottom, height * 0.92), facecolors=colour)
    axes.set_yticks(range(len(shown.causes)), shown.causes)
    axes.set_ylim(len(shown.causes) - 0.5, -0.5)
    if shown.windows:
        axes.xaxis_date()
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no window has enough images yet", transform=axes.transAxes, ha="center", color=INK)
    halves = f" (in each row: {' above, '.join(scales)} below)" if len(scales) > 1 else ""
    _head(axes, f"windows{halves}: orange has drifted", False)


def _draw_days(axes: "Axes", shown: Shown) -> None:
    days = shown.days[-DAYS:]
    places = np.arange(len(days))
    values, low, high = (np.array(column, float) for column in list(zip(*days, strict=True))[1:])
    axes.axhline(shown.promised, color=INK, linestyle=(0, (3, 2)), linewidth=1.2, label="test accuracy at promotion")
    axes.vlines(places, low, high, color=GOOD, linewidth=1.5)
    axes.plot(places, values, "o", color=GOOD, markersize=5, label="labelled answers, 95 % interval")
    step = max(1, -(-len(days) // 8))
    axes.set_xticks(places[::step], [day[0] for day in days][::step], rotation=30, ha="right")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False, fontsize=9)
    _head(axes, "accuracy by day", False)
