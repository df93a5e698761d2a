import numpy as np
import pytest

from mobilenet_pipeline.evaluation import corruptions

IMAGES = np.random.default_rng(0).integers(60, 200, (6, 32, 32, 3), dtype=np.uint8)


def changed(name: str, severity: int) -> float:
    """Return the mean absolute change in levels."""
    made = corruptions.CORRUPTIONS[name](IMAGES, severity, np.random.default_rng(0))
    return float(np.abs(made.astype(int) - IMAGES).mean())


def test_every_corruption_has_three_severities():
    found = dict(corruptions.corrupted(IMAGES, seed=0))
    assert list(found) == corruptions.names()
    assert len(found) == 15


def test_corrupted_images_keep_shape_and_type():
    found = dict(corruptions.corrupted(IMAGES, seed=0))
    assert {(made.shape, made.dtype) for made in found.values()} == {(IMAGES.shape, IMAGES.dtype)}


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_higher_severity_changes_an_image_more(name):
    assert 0 < changed(name, 1) < changed(name, 2) < changed(name, 3)


def test_the_same_seed_gives_the_same_pixels():
    first, second = (dict(corruptions.corrupted(IMAGES, seed=3)) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_corruption_does_not_change_its_input():
    before = IMAGES.copy()
    list(corruptions.corrupted(IMAGES, seed=0))
    assert np.array_equal(before, IMAGES)


def test_brightness_clips_and_does_not_wrap_around():
    white = np.full((8, 32, 32, 3), 250, np.uint8)
    made = corruptions.brightness(white, 3, np.random.default_rng(0))
    assert set(np.unique(made)) == {175, 255}
