"""What an image looks like, as a few numbers: the input statistics that drift is measured with. NumPy only.

The service records them with every answer, and the reference of a version has them of its test images. They were chosen
by what cameras and chat programs do to images. JPEG at quality 75 leaves the brightness of CIFAR-10 as it is, and moves
the colour gradient by a Kolmogorov-Smirnov distance of 0.4, because JPEG stores colours at half the resolution.
"""

from collections.abc import Mapping

import numpy as np

NAMES = ("brightness", "contrast", "warmth", "saturation", "gradient", "colour_gradient")
"""The columns of `table`. All of them are on the scale of the pixels, 0 to 255."""
MEASURED = ("mean", "spread", "saturation", "gradient", "colour_gradient")
"""What `measure` returns, and what a line of the record has."""


def measure(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measurements of images uint8 (n, h, w, 3), float (n, 3) or (n,).

    `mean` and `spread` are mean and standard deviation of each colour. `saturation` is the mean difference of a pixel's
    largest and smallest colour. `gradient` is the mean absolute difference of neighbouring pixels in green, along rows
    and along columns, added up; `colour_gradient` is that of red minus green, along rows.
    """
    count, height, width = pixels.shape[:3]
    size = height * width
    # NumPy adds up colour by colour three times as fast as pixel by pixel, and flat rows twice as fast as images.
    planes = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)).reshape(3, count, size)
    # Values around 0 keep the sum of squares of a row of 1,024 pixels within 2^24, up to which float32 is exact.
    around = (planes ^ 128).view(np.int8).astype(np.float32)
    mean = _sums(around) / size
    by_row = around.reshape(3, count, height, width)
    square = np.einsum("cijk,cijk->cij", by_row, by_row).sum(axis=2, dtype=float) / size
    red, green, blue = planes
    range_of_colours = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    below, beside = _apart(green, width), _apart(green, 1)
    colours = around[0] - around[1]
    colours_beside = np.abs(colours[:, 1:] - colours[:, :-1])
    for neighbours in (beside, colours_beside):
        neighbours[:, width - 1 :: width] = 0  # the end of a row is not beside the begin of the next
    pairs_below, pairs_beside = max(1, size - width), max(1, size - height)
    return {
        "mean": mean.T + 128,
        "spread": np.sqrt(np.maximum(square - mean**2, 0)).T,
        "saturation": _sums(range_of_colours) / size,
        "gradient": _sums(below) / pairs_below + _sums(beside) / pairs_beside,
        "colour_gradient": _sums(colours_beside) / pairs_beside,
    }


def table(measured: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the statistics NAMES, float (n, 6), of what `measure` returns.

    NaN stays NaN: the lines of an older record have `mean` and `spread` only.
    """
    mean, spread = measured["mean"], measured["spread"]
    columns: Mapping[str, np.ndarray] = {
        **measured,
        "brightness": mean.mean(axis=1),
        "contrast": np.sqrt((spread**2).mean(axis=1)),
        "warmth": mean[:, 0] - mean[:, 2],
    }
    return np.column_stack([columns[name] for name in NAMES])


def _apart(rows: np.ndarray, step: int) -> np.ndarray:
    """Return the absolute difference of values (n, k) of uint8 and those `step` places later, as uint8."""
    one, other = rows[:, step:], rows[:, :-step]
    return np.maximum(one, other) - np.minimum(one, other)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums over the last axis, as float64. `einsum` is three times as fast as `sum`."""
    return np.einsum("...k->...", values.astype(np.float32, copy=False)).astype(float)
