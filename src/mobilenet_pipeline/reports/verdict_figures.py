"""Figures that compare two models, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.reports.figures import (
    FAINT,
    GOOD,
    INK,
    LISTED,
    canvas,
    draw_matrix,
    list_below,
    matrix_size,
    palette,
    plain,
    png,
    short,
)

SIZES = (1, 2, 3, 4, 5, 6, 11, 21, 51, 101, 201, 501)
"""The least sizes of the bins in a figure of prediction sets."""


def reliability(answers: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Draw accuracy against confidence, a line per candidate.

    `answers` maps a candidate to probabilities (n, k) and labels (n,). On the diagonal, accuracy equals confidence. The
    legend has the expected calibration error.
    """
    figure, (axes,) = canvas(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.5)
    lowest, colours = 1.0, palette(answers)
    for name, (probabilities, labels) in answers.items():
        confidence, accuracy, count = scores.reliability(probabilities, labels)
        bounds = np.array(
            [scores.wilson_interval(round(share * n), int(n)) for share, n in zip(accuracy, count, strict=True)]
        )
        whiskers = np.abs(bounds.T - accuracy)
        error = scores.expected_calibration_error(probabilities, labels)
        axes.errorbar(
            confidence,
            accuracy,
            yerr=whiskers,
            color=colours[name],
            marker="o",
            markersize=4,
            elinewidth=1,
            label=f"{plain(name)}, calibration error {error:.2%}",
        )
        lowest = min(lowest, float(confidence.min()), float(bounds.min()))
    axes.set(xlim=(lowest - 0.02, 1.01), ylim=(lowest - 0.02, 1.01), xlabel="confidence", ylabel="accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, fontsize=10, loc="upper left")
    return png(figure)


def corruptions(accuracies: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw the accuracy on each corruption, from {candidate: {corruption: share}}."""
    return _shares(accuracies)


def unfamiliar(documents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw the share of each kind of image that is flagged, from the entry `unfamiliar` of each evaluation."""
    return _shares(
        {
            candidate: {"test images": flagged["test"]} | flagged["corruptions"] | flagged["other_images"]
            for candidate, flagged in documents.items()
        }
    )


def set_sizes(documents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw the share of the prediction sets of each size, from the entry `prediction_sets` of each evaluation."""
    largest = max(int(size) for sets in documents.values() for size in sets["sizes"])
    bins = [edge for edge in SIZES if edge <= largest]
    names = [
        f"{low} class" + "es" * (low > 1) if high == low else f"{low} to {high}"
        for low, high in zip(bins, [*(edge - 1 for edge in bins[1:]), max(largest, bins[-1])], strict=True)
    ]
    shares = {}
    for candidate, sets in documents.items():
        places = np.searchsorted(bins, [int(size) for size in sets["sizes"]], side="right") - 1
        counts = np.bincount(places, weights=list(sets["sizes"].values()), minlength=len(bins))
        shares[candidate] = dict(zip(names, counts / counts.sum(), strict=True))
    return _shares(shares)


def _shares(candidates: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw a bar for every name and candidate, from {candidate: {name: share}}."""
    names = list(next(iter(candidates.values())))
    figure, (axes,) = canvas(6.4, 1.0 + 0.36 * len(names))
    thickness, places, colours = 0.8 / len(candidates), np.arange(len(names)), palette(candidates)
    for position, (candidate, by_name) in enumerate(candidates.items()):
        offset = (position - (len(candidates) - 1) / 2) * thickness
        shares = [by_name[name] for name in names]
        axes.barh(places + offset, shares, thickness * 0.9, color=colours[candidate], alpha=0.85, label=candidate)
        for place, share in zip(places, shares, strict=True):
            axes.text(share + 0.01, place + offset, f"{share:.1%}", va="center", fontsize=8, color=INK)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, frameon=False, fontsize=11)
    return png(figure)


def confusion_difference(first: Sequence, second: Sequence, title: str, class_names: Sequence[str]) -> bytes:
    """Draw the second confusion matrix minus the first.

    Improvements are blue, deteriorations orange. With many classes, the figure lists those that lose most.
    """
    difference = np.asarray(second) - np.asarray(first)
    better = np.where(np.eye(len(difference), dtype=bool), difference, -difference)
    share = np.abs(better) / max(1, np.abs(better).max())
    figure, (axes,) = canvas(*matrix_size(class_names))
    draw_matrix(axes, difference, share, better > 0, class_names, "+d")
    if len(difference) > scores.SHOWN:
        right = difference.diagonal()
        most = np.argsort(right, kind="stable")[:LISTED]
        list_below(
            axes, "change in right answers", [f"{short(class_names[label])}: {right[label]:+d}" for label in most]
        )
    axes.set_title(plain(title), loc="left", fontweight="bold")
    return png(figure)


def champions(champions: Sequence[tuple[str, str, float]]) -> bytes:
    """Draw the accuracies of successive champions: (version, date, share)."""
    figure, (axes,) = canvas(11, 3.6)
    places, shares = np.arange(len(champions)), [share for _, _, share in champions]
    axes.step(places, shares, where="mid", color=FAINT)
    axes.plot(places, shares, "o", color=GOOD)
    for place, share in zip(places, shares, strict=True):
        axes.annotate(f"{share:.2%}", (place, share), textcoords="offset points", xytext=(7, 5), fontsize=9, color=INK)
    axes.set_xticks(places, [f"version {version}\n{date}" for version, date, _ in champions], fontsize=9)
    axes.set_xlim(-0.5, max(len(champions), 3) - 0.3)
    axes.margins(y=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    return png(figure)
