"""Cut the photographs that scikit-image and scikit-learn ship into labelled pictures of 96 pixels.

Every photograph is a class. It is cut into tiles, and a tile into overlapping pictures; the tile is the group of its
pictures, so that no part of a photograph is on both sides of a split. `make photographs` runs this, with scikit-image.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE = 96
"""Height and width of a picture, in pixels."""
TILE = 104
"""Least height and width of a tile."""
STEPS = 3
"""Pictures of a tile in each direction."""
FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "stars": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
}
"""Photographs that the wheel of scikit-image has; others are downloaded."""


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield class name and photograph."""
    for name, file in FILES.items():
        yield name, Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
    yield "flower", Image.fromarray(load_sample_image("flower.jpg"))
    yield "temple", Image.fromarray(load_sample_image("china.jpg"))


def cut(photograph: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield number of the tile and picture."""
    columns, rows = (np.linspace(0, length, length // TILE + 1, dtype=int) for length in photograph.size)
    for tile in range((len(columns) - 1) * (len(rows) - 1)):
        column, row = tile % (len(columns) - 1), tile // (len(columns) - 1)
        for left in np.linspace(columns[column], columns[column + 1] - SIDE, STEPS, dtype=int):
            for top in np.linspace(rows[row], rows[row + 1] - SIDE, STEPS, dtype=int):
                yield tile, photograph.crop((left, top, left + SIDE, top + SIDE))


def main(folder: Path) -> None:
    """Write the pictures and their table, pictures.csv."""
    with (folder / "pictures.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "group"])
        for name, photograph in photographs():
            (folder / name).mkdir(exist_ok=True)
            for number, (tile, picture) in enumerate(cut(photograph)):
                picture.save(folder / name / f"{number}.png")
                table.writerow([f"{name}/{number}.png", name, f"{name}, tile {tile}"])
            print(f"{name:<10} {photograph.width} × {photograph.height} pixels, {number + 1} pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
