"""Images of other kinds than a dataset's, to see how often a model finds them unfamiliar. The same on every machine.

All of them are made here or ship with scikit-learn, so that an evaluation needs no network.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

COUNT = 200
"""Images of every kind: a share of them has a standard error of at most 3.5 percentage points."""
KNOWN = 2000
"""So many images of the dataset, drawn at random, are compared with those of each kind."""


def digits(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return handwritten digits of scikit-learn, 8 × 8 in 17 greys, enlarged with Pillow's bicubic filter."""
    from sklearn.datasets import load_digits

    chosen = rng.permutation(load_digits().images)[:COUNT]
    grey = np.rint(chosen * (255 / 16)).astype(np.uint8)
    return np.stack([_resized(Image.fromarray(image).convert("RGB"), size) for image in grey])


def photographs(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return square patches, at random places and scales, of scikit-learn's two photographs: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    photos, patches = load_sample_images().images, []
    for index in range(COUNT):
        photo = photos[index % len(photos)]
        side = int(rng.integers(32, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        patches.append(_resized(Image.fromarray(photo[top : top + side, left : left + side]), size))
    return np.stack(patches)


def stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return sine gratings of random direction, wavelength and two colours."""
    down, across = np.mgrid[:size, :size] / size
    angle, waves, phase = rng.uniform(0, np.pi, COUNT), rng.uniform(1, 8, COUNT), rng.uniform(0, 2 * np.pi, COUNT)
    places = np.cos(angle)[:, None, None] * across + np.sin(angle)[:, None, None] * down
    share = (np.sin(2 * np.pi * waves[:, None, None] * places + phase[:, None, None]) + 1)[..., None] / 2
    first, second = rng.uniform(0, 255, (2, COUNT, 1, 1, 3))
    return np.rint(share * first + (1 - share) * second).astype(np.uint8)


def plain(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return images of one random colour each, as a covered lens gives them."""
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (COUNT, size, size, 3)).copy()


def noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return independent uniform random pixels."""
    return rng.integers(0, 256, (COUNT, size, size, 3), dtype=np.uint8)


KINDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    function.__name__: function for function in (digits, photographs, stripes, plain, noise)
}


def others(images: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (kind, images) of every kind that is not in the dataset.

    `images` uint8 (n, h, h, 3) is the dataset, memory-mapped or not; the results have its image size. A kind is left
    out if one of its images is among those of the dataset that are looked at.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:KNOWN])
    known = {images[row].tobytes() for row in rows}
    for number, (kind, function) in enumerate(KINDS.items()):
        made = function(images.shape[1], np.random.default_rng([seed, number]))
        if not any(image.tobytes() in known for image in made):
            yield kind, made


def _resized(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
