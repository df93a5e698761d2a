"""The handwritten digits that are part of scikit-learn."""

import numpy as np

from mobilenet_pipeline.data.sources.base import LabelledImages

SIDE = 32
"""Height and width of the resized digits, in pixels."""


def load_digits() -> LabelledImages:
    """Return scikit-learn's 1,797 digits as 32×32 RGB: 1,437 to train, 360 to test.

    The originals are 8×8 in 17 greys. The greys are scaled to 0 … 255, and Pillow's bicubic filter resizes the images.
    The stratified test split has a fixed seed, so that recipes with different seeds are scored on the same images.
    """
    from PIL import Image
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in grey]
    images = np.repeat(np.stack([np.asarray(image) for image in large])[..., np.newaxis], 3, axis=3)
    labels = digits.target.astype(np.uint8)
    is_test = np.zeros(len(labels), dtype=bool)
    _, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    is_test[test] = True
    return LabelledImages(images, labels, is_test, "scikit-learn's digits")
