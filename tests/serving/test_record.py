import numpy as np
import pytest

from serving.record import Answer, describe


def test_a_line_has_the_mean_and_the_spread_of_each_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pixels[1, :, :, 2] = 255
    predictions = [{"class": "cat", "probabilities": {"cat": np.float32(1)}}] * 2
    lines = list(describe(Answer("/predict_batch", {}, predictions, pixels), keep_images=False))
    for line, image in zip(lines, pixels, strict=True):
        assert line["mean"] == pytest.approx(image.mean(axis=(0, 1)), abs=0.006)
        assert line["spread"] == pytest.approx(image.std(axis=(0, 1)), abs=0.006)
