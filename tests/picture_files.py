"""Files of small pictures for tests: every one has other pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(number: int, side: int = 32) -> np.ndarray:
    """Random pixels uint8 (side, side, 3)."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(number: int, kind: str = "PNG", mode: str = "RGB", side: int = 32, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number, side)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def put(path: Path, number: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, **options))
    return path


def classes(root: Path, counts: dict[str, int]) -> Path:
    """A folder for each class, with as many pictures as `counts` says."""
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            number += 1
            put(root / name / f"{number}.png", number)
    return root
