"""Image corruptions, each in three severities. Pure: the same seed gives the same pixels.

They are a selection from Hendrycks and Dietterich 2019 (arXiv:1903.12261), adapted to 32×32 images. Their blur of
224×224 images is √7 times as wide as that of 32×32 images, and so it is here.
"""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

SEVERITIES = (1, 2, 3)


def noise(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise with standard deviation 8, 16 or 24, on the scale 0 to 255."""
    return _bytes(images + rng.normal(0, 8 * severity, images.shape))


def blur(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian kernel of standard deviation 0.5, 0.8 or 1.1 pixels, for images of 32 pixels.

    It grows with the square root of the images' side.
    """
    from scipy.ndimage import gaussian_filter

    width = (0.5, 0.8, 1.1)[severity - 1] * (images.shape[1] / 32) ** 0.5
    return _bytes(gaussian_filter(images.astype(np.float32), (0, width, width, 0), mode="nearest"))


def brightness(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Make every image brighter or darker by 25, 50 or 75, on the scale 0 to 255."""
    sign = rng.choice([-1, 1], (len(images), 1, 1, 1))
    return _bytes(images + 25.0 * severity * sign)


def contrast(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Reduce the differences from the image's mean to 70, 45 or 25 %."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return _bytes(mean + (images - mean) * (0.7, 0.45, 0.25)[severity - 1])


def jpeg(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode every image as JPEG with quality 60, 30 or 15."""
    return np.stack([_as_jpeg(image, (60, 30, 15)[severity - 1]) for image in images])


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    function.__name__: function for function in (noise, blur, brightness, contrast, jpeg)
}


def names() -> list[str]:
    """Return the names of all corruptions, in the order of `corrupted`."""
    return [f"{name} {severity}" for name in CORRUPTIONS for severity in SEVERITIES]


def corrupted(parts: Sequence[Callable[[], np.ndarray]], seed: int) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield (name, parts) for every corruption and severity.

    A name is like `blur 2`. Each of `parts` returns some of the images, and the results are these parts corrupted, all
    uint8 (n, h, w, 3). The pixels do not depend on how the images are divided. A result must be used up before the
    next one.
    """
    for number, (name, function) in enumerate(CORRUPTIONS.items()):
        for severity in SEVERITIES:
            rng = np.random.default_rng([seed, number, severity])
            yield f"{name} {severity}", (function(part(), severity, rng) for part in parts)


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
