"""What a drawn figure shows."""

import io

import numpy as np
from PIL import Image


def pixels_of(png: bytes) -> np.ndarray:
    """Return the pixels (height, width, 3) of a figure, which must not be tiny, huge or blank."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert 250 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 2600
    assert len(np.unique(pixels @ np.array([65536, 256, 1]))) > 20
    return pixels


def shows(png: bytes, colour: str) -> bool:
    """Return whether a pixel of the figure has the colour `#rrggbb`."""
    expected = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return bool((np.abs(pixels - expected).max(axis=2) < 3).any())
