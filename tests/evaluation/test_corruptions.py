import numpy as np
import pytest

from mobilenet_pipeline.evaluation import corruptions

IMAGES = np.random.default_rng(0).integers(60, 200, (6, 32, 32, 3), dtype=np.uint8)


def changed(name: str, severity: int) -> float:
    """Return the mean absolute change in levels."""
    made = corruptions.CORRUPTIONS[name](IMAGES, severity, np.random.default_rng(0))
    return float(np.abs(made.astype(int) - IMAGES).mean())


def applied(images: np.ndarray = IMAGES, parts: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the corrupted images by corruption; they are corrupted in so many parts."""
    given = [lambda part=part: part for part in np.array_split(images, parts)]
    return {name: np.concatenate([*made]) for name, made in corruptions.corrupted(given, seed)}


def test_images_that_are_divided_are_corrupted_alike():
    whole, divided = applied(), applied(parts=4)
    assert all(np.array_equal(whole[name], divided[name]) for name in whole)


def test_a_large_image_is_blurred_with_a_wider_kernel():
    edge = np.zeros((1, 128, 128, 3), np.uint8)
    edge[:, :, 64:] = 200
    small, large = (corruptions.blur(image, 1, np.random.default_rng(0)) for image in (edge[:, :32, 48:80], edge))
    assert len(np.unique(large)) > len(np.unique(small))


def test_every_corruption_has_three_severities():
    found = applied()
    assert list(found) == corruptions.names()
    assert len(found) == 15


def test_corrupted_images_keep_shape_and_type():
    found = applied()
    assert {(made.shape, made.dtype) for made in found.values()} == {(IMAGES.shape, IMAGES.dtype)}


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_higher_severity_changes_an_image_more(name):
    assert 0 < changed(name, 1) < changed(name, 2) < changed(name, 3)


def test_the_same_seed_gives_the_same_pixels():
    first, second = (applied(seed=3) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_corruption_does_not_change_its_input():
    before = IMAGES.copy()
    applied()
    assert np.array_equal(before, IMAGES)


def test_brightness_clips_and_does_not_wrap_around():
    white = np.full((8, 32, 32, 3), 250, np.uint8)
    made = corruptions.brightness(white, 3, np.random.default_rng(0))
    assert set(np.unique(made)) == {175, 255}
