"""Figures as PNG bytes, without windows or global state: safe in any process or thread."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mobilenet_pipeline.metrics import scores

# Importing Matplotlib takes half a second, and most commands that could draw, such as `status`, draw nothing.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito: distinct for colour-blind readers, and by lightness in print.
PALETTE = ("#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
"""A colour for each of up to five candidates."""
TINT = 0.5  # how much whiter the colour of a twin is than its candidate's
INK, FAINT, GOOD, BAD = "#1b1f24", "#d5dae0", "#0072B2", "#B3421B"
DPI = 160
GAP = 3  # pixels between the images of a contact sheet
CELLS, TICKS, LISTED = 400, 20, 10
"""A heat map has at most so many cells and class names a side, and lists so many classes below it."""
NAME = 24
"""The longest class name in a figure, in characters."""


def learning_curves(histories: Mapping[str, Any], quantities: Sequence[str] = ("loss", "accuracy")) -> bytes:
    """Draw each of `quantities` over the epochs, a colour per candidate.

    Training is dashed, validation is solid. `histories` maps a candidate to the columns of its history.csv: a dict of
    lists or a data frame.
    """
    from matplotlib.ticker import MaxNLocator

    figure, panels = canvas(5.6, 3.9, len(quantities))
    for axes, quantity in zip(panels, quantities, strict=True):
        for (name, columns), colour in zip(histories.items(), palette(histories).values(), strict=True):
            _draw_curve(axes, name, columns, quantity, colour)
        axes.set_title(f"{quantity.capitalize()} per epoch", loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=FAINT, linewidth=0.8)
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            axes.set_ylim(bottom=0)
        if histories:
            axes.legend(frameon=False, fontsize=10)
    return png(figure)


def confusion_matrices(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]) -> bytes:
    """Draw one confusion matrix per candidate, side by side.

    A matrix has a row per actual class. Correct answers are blue and mistakes orange, darker for a larger share of the
    row. The cells have counts as text. With many classes, the figure lists the least accurate classes instead.
    """
    figure, panels = canvas(*matrix_size(class_names), len(matrices))
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        _draw_confusion(axes, np.asarray(matrix), class_names)
        axes.set_title(plain(name), loc="left", fontweight="bold", color=INK)
    return png(figure)


def accuracy_per_class(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]) -> bytes:
    """Draw each class's accuracy with its 95 % Wilson interval.

    `matrices` are the candidates' confusion matrices; a class has a bar per candidate. Of many classes, the worst and
    the best are drawn.
    """
    shown = scores.shown_classes(matrices.values())
    figure, (axes,) = canvas(5.6, 1.2 + 0.26 * max(2, len(matrices)) * len(shown))
    thickness = 0.8 / max(1, len(matrices))
    places, colours = np.arange(len(shown)), palette(matrices)
    for position, (name, matrix) in enumerate(matrices.items()):
        counts = np.asarray(matrix)
        right, rows = counts.diagonal()[shown], counts.sum(axis=1)[shown]
        share = right / np.maximum(rows, 1)
        bounds = np.array([scores.wilson_interval(int(r), int(n)) for r, n in zip(right, rows, strict=True)])
        offset = (position - (len(matrices) - 1) / 2) * thickness
        whiskers = np.abs(bounds.T - share)
        axes.barh(places + offset, share, thickness * 0.9, color=colours[name], alpha=0.85, label=name)
        axes.errorbar(share, places + offset, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
        for place, value, count in zip(places, share, rows, strict=True):
            text = f"{value:.1%}" if count else "no images"
            axes.text(1.02, place + offset, text, va="center", fontsize=9, color=INK)
    axes.set_yticks(places, [plain(class_names[label]) for label in shown])
    if len(shown) < len(class_names):
        axes.margins(y=0.01)
        axes.set_xlabel(f"the classes with the lowest and the highest accuracy of {len(class_names):,}")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.13)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, frameon=False, fontsize=11)
    return png(figure)


def sample_sheet(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], per_class: int = 8) -> bytes:
    """Draw the first `per_class` images of each class, a row per class.

    `images` (n, height, width, 3) uint8, memory-mapped or not; `labels` (n,). Of many classes, some are drawn, at equal
    distances in the order of the classes.
    """
    height, width = images.shape[1:3]
    shown = np.unique(np.linspace(0, len(class_names) - 1, min(len(class_names), scores.SHOWN)).astype(int))
    sheet = np.full(((height + GAP) * len(shown), (width + GAP) * per_class, 3), 255, np.uint8)
    for position, label in enumerate(shown):
        for column, row in enumerate(np.flatnonzero(labels == label)[:per_class]):
            top, left = position * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = images[row]
    figure, (axes,) = canvas(6.4, 6.4 * len(shown) / (per_class + 1.6))
    axes.imshow(sheet, interpolation="nearest")
    axes.set_xticks([])
    middles = np.arange(len(shown)) * (height + GAP) + height / 2
    axes.set_yticks(middles, [plain(class_names[label]) for label in shown])
    axes.tick_params(length=0, labelsize=12)
    axes.spines[:].set_visible(False)
    return png(figure)


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int = 12) -> np.ndarray:
    """Return the rows of the wrong answers with the highest confidence.

    They are at most `count` rows of `probabilities` (n, classes) and `labels` (n,), the most confident first.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def worst_mistakes(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], count: int = 12
) -> bytes:
    """Draw the `count` wrong answers with the highest confidence.

    Each image has its actual class, the answer and the confidence. `images` (n, height, width, 3) uint8, `labels` (n,)
    and `probabilities` (n, classes) are of the same n test images.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    worst = most_confident_mistakes(labels, probabilities, count)
    columns, side = 4, max(images.shape[1:3])
    pitch = np.array([side * 1.6, side * 1.08])  # space for two lines of text below and a gap beside
    figure, (axes,) = canvas(7.2, 2.7 * max(1, -(-len(worst) // columns)))
    for position, row in enumerate(worst):
        top, left = np.array(divmod(position, columns)) * pitch
        axes.imshow(images[row], interpolation="nearest", extent=(left, left + side, top + side, top))
        middle, answer = left + side / 2, f"{plain(class_names[predicted[row]])} {confidence[row]:.0%}"
        axes.text(middle, top + side * 1.04, answer, ha="center", va="top", fontsize=11, color=BAD)
        actual = f"is {plain(class_names[labels[row]])}"
        axes.text(middle, top + side * 1.26, actual, ha="center", va="top", fontsize=11, color=INK)
    axes.set_axis_off()
    if len(worst):
        end = pitch * (-(-len(worst) // columns), columns)
        axes.set(xlim=(0, end[1]), ylim=(end[0], 0))
    else:
        axes.text(0.5, 0.5, "No mistakes on these images.", ha="center", fontsize=13, color=INK)
    return png(figure)


def twin_sheet(images: np.ndarray, pairs: Sequence[Sequence[float]], count: int = 12) -> bytes:
    """Draw `count` pairs of near twins, the test image on the left, from the most to the least similar.

    `images` (n, height, width, 3) uint8, memory-mapped or not. A pair is (test row, training row, bits, correlation).
    Of many pairs, some are drawn, at equal distances in the order of their correlation.
    """
    ordered = sorted(pairs, key=lambda pair: -pair[3])
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), count)).astype(int))
    shown = [ordered[place] for place in places]
    columns, (height, width) = 4, images.shape[1:3]
    pitch = np.array([height + 3 * GAP, 2 * width + 3 * GAP])
    sheet = np.full((*(pitch * (-(-len(shown) // columns), columns)), 3), 255, np.uint8)
    for position, (test, train) in enumerate((int(pair[0]), int(pair[1])) for pair in shown):
        top, left = np.array(divmod(position, columns)) * pitch
        sheet[top : top + height, left : left + 2 * width] = np.concatenate([images[test], images[train]], axis=1)
    figure, (axes,) = canvas(6.4, 6.4 * sheet.shape[0] / sheet.shape[1])
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    return png(figure)


def _draw_curve(axes: "Axes", name: str, columns: Any, quantity: str, colour: str) -> None:
    for split, style, width in (("train", (0, (3, 2)), 1.6), ("validation", "solid", 2.4)):
        values = [float(value) for value in columns[f"{split}_{quantity}"]]
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, color=colour, linestyle=style, linewidth=width, label=f"{name}, {split}")
        axes.plot(epochs[-1:], values[-1:], "o", color=colour, markersize=4)


def _draw_confusion(axes: "Axes", counts: np.ndarray, class_names: Sequence[str]) -> None:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw_matrix(axes, counts, share, np.eye(len(counts), dtype=bool), class_names)
    if len(counts) > scores.SHOWN:
        lowest = scores.shown_classes([counts])[:LISTED]
        list_below(axes, "lowest accuracy", [_describe_class(counts[label], label, class_names) for label in lowest])


def _describe_class(row: np.ndarray, label: int, class_names: Sequence[str]) -> str:
    mistakes = np.where(np.arange(len(row)) == label, 0, row)
    other = int(mistakes.argmax())
    confused = f", {mistakes[other]:,} as {short(class_names[other])}" if mistakes[other] else ""
    return f"{short(class_names[label])}: {row[label] / max(row.sum(), 1):.0%} of {row.sum():,}{confused}"


def draw_matrix(
    axes: "Axes", values: np.ndarray, share: np.ndarray, good: np.ndarray, class_names: Sequence[str], form: str = "d"
) -> None:
    """Draw a square matrix with a row per actual and a column per predicted class.

    `values` (k, k) are integers, written into the cells in the format `form` unless there are many classes. `share`
    (k, k), from 0 to 1, sets how dark a cell is. Cells in `good` (k, k) are blue, the others orange.
    """
    # The square root makes the few mistakes of a good model visible.
    strength = np.sqrt(share)[..., None] * 0.9
    cells = 1 - strength * (1 - np.where(good[..., None], shares_of(GOOD), shares_of(BAD)))
    many = len(values) > scores.SHOWN
    if not many:
        axes.imshow(cells)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if strength[row, column, 0] > 0.68 else INK if value else "#9aa2ab"
            text = format(value, form) if value else "0"
            axes.text(column, row, text, ha="center", va="center", fontsize=10, color=colour)
    else:
        block = -(-len(values) // CELLS)
        drawn = _darkest(cells, block)
        edge = len(drawn) * block - 0.5
        axes.imshow(drawn, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
    ticks = range(0, len(values), -(-len(values) // TICKS) if many else 1)
    names = [short(class_names[tick]) if many else plain(class_names[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.tick_params(length=0, labelsize=8 if many else 10.5)
    axes.spines[:].set_visible(False)


def matrix_size(class_names: Sequence[str]) -> tuple[float, float]:
    """Return width and height in inches of a matrix, with a list below it if there are many classes."""
    return (6.2, 5.9) if len(class_names) <= scores.SHOWN else (7.6, 9.0)


def list_below(axes: "Axes", title: str, lines: Sequence[str]) -> None:
    """Write the lines below the panel of a matrix."""
    axes.set_xlabel("\n".join(["predicted", "", f"{title}:", *lines]), loc="left", fontsize=9, linespacing=1.4)


def _darkest(cells: np.ndarray, block: int) -> np.ndarray:
    """Return the darkest of each `block` × `block` of `cells` (k, k, 3): a figure has fewer pixels than cells.

    The cells of the last blocks that `cells` lacks are white.
    """
    count = -(-len(cells) // block)
    filled = np.ones((count * block, count * block, 3))
    filled[: len(cells), : len(cells)] = cells
    blocks = filled.reshape(count, block, count, block, 3).swapaxes(1, 2).reshape(count, count, -1, 3)
    darkest = blocks.sum(axis=3).argmin(axis=2)
    return np.take_along_axis(blocks, darkest[..., None, None], axis=2)[:, :, 0]


def canvas(width: float, height: float, panels: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure with panels of `width` × `height` inches side by side."""
    from matplotlib.figure import Figure

    # A layout draws everything twice. One panel does not need it, because `png` crops the figure.
    layout: Literal["constrained"] | None = "constrained" if panels > 1 else None
    figure = Figure(figsize=(width * panels, height), dpi=DPI, layout=layout, facecolor="white")
    axes = [figure.add_subplot(1, panels, position + 1) for position in range(panels)]
    for panel in axes:
        style(panel)
    return figure, axes


def style(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10.5)
    axes.set_axisbelow(True)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
        text.set_fontsize(11)


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each candidate; a twin such as `scratch_int8` has a tint of its candidate's colour."""
    listed = list(names)
    stems = {name: name.rpartition("_")[0] for name in listed if name.endswith(("_int8", "_float32"))}
    own = {name: stems[name] if stems.get(name) in listed else name for name in listed}
    places = {name: place for place, name in enumerate(dict.fromkeys(own.values()))}
    colours = {name: PALETTE[places[stem] % len(PALETTE)] for name, stem in own.items()}
    return {name: colour if own[name] == name else _tint(colour) for name, colour in colours.items()}


def _tint(colour: str) -> str:
    lighter = shares_of(colour) * (1 - TINT) + TINT
    return "#" + "".join(f"{round(share * 255):02X}" for share in lighter)


def shares_of(colour: str) -> np.ndarray:
    """Return red, green and blue of `#rrggbb`, from 0 to 1."""
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255


def short(name: str) -> str:
    """Return a class name of at most `NAME` characters for a figure."""
    return plain(name if len(name) <= NAME else f"{name[: NAME - 1]}…")


def plain(text: str) -> str:
    """Return the text with `$` escaped, which matplotlib would parse as TeX."""
    return text.replace("$", r"\$")


def png(figure: "Figure") -> bytes:
    """Return the figure as PNG, cropped to its content."""
    buffer = io.BytesIO()
    # Tight: long class names stay visible. No version in the metadata: the same numbers give the same bytes.
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})
    return buffer.getvalue()
