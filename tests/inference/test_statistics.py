"""The input statistics: what they are, and what they see of what happens to images."""

import io

import numpy as np
import pytest
from PIL import Image

from mobilenet_pipeline.inference import statistics

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 24, 20, 3), dtype=np.uint8)


def photo() -> np.ndarray:
    """Return an image (1, 32, 32, 3) that fades from dark to light, with fine colours as a sensor's."""
    light = np.linspace(60, 190, 32)[None, :, None, None]
    return (light + np.random.default_rng(0).normal(0, 8, (1, 32, 32, 3))).round().astype(np.uint8)


def value(pixels: np.ndarray, name: str) -> float:
    return float(statistics.table(statistics.measure(pixels))[0, statistics.NAMES.index(name)])


def test_mean_and_spread_are_those_of_each_colour() -> None:
    measured = statistics.measure(PIXELS)
    assert measured["mean"] == pytest.approx(PIXELS.mean(axis=(1, 2)))
    assert measured["spread"] == pytest.approx(PIXELS.std(axis=(1, 2)))


def test_gradients_are_differences_of_neighbours() -> None:
    measured, exact = statistics.measure(PIXELS), PIXELS.astype(int)
    along = [np.abs(np.diff(exact[..., 1], axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    colours = np.abs(np.diff(exact[..., 0] - exact[..., 1], axis=2)).mean(axis=(1, 2))
    assert measured["gradient"] == pytest.approx(along[0] + along[1])
    assert measured["colour_gradient"] == pytest.approx(colours)


def test_saturation_is_the_range_of_a_pixel_s_colours() -> None:
    assert statistics.measure(PIXELS)["saturation"] == pytest.approx(np.ptp(PIXELS.astype(int), axis=3).mean((1, 2)))


@pytest.mark.parametrize("size", [1, 2, 32])
def test_an_image_of_one_colour_has_brightness_only(size: int) -> None:
    row = statistics.table(statistics.measure(np.full((1, size, size, 3), 250, np.uint8)))[0]
    assert row.tolist() == [250, 0, 0, 0, 0, 0]


def test_recompression_is_seen_in_the_colour_gradient_and_not_in_the_brightness() -> None:
    stream = io.BytesIO()
    Image.fromarray(photo()[0]).save(stream, "JPEG", quality=75)
    again = np.asarray(Image.open(stream))[None]
    assert value(again, "brightness") == pytest.approx(value(photo(), "brightness"), rel=0.02)
    assert value(again, "colour_gradient") < 0.8 * value(photo(), "colour_gradient")


def test_a_line_of_an_older_record_has_its_first_statistics() -> None:
    measured = statistics.measure(PIXELS)
    lacking = dict.fromkeys(statistics.MEASURED[2:], np.full(len(PIXELS), np.nan))
    old = statistics.table({"mean": measured["mean"], "spread": measured["spread"], **lacking})
    assert (old[:, :3] == statistics.table(measured)[:, :3]).all()
    assert np.isnan(old[:, 3:]).all()
