import numpy as np
import pytest

from mobilenet_pipeline.data.sources.digits import load_digits
from mobilenet_pipeline.evaluation import other_images

FLAT = np.zeros((3, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    return dict(other_images.others(FLAT, 0))


def test_every_kind_has_the_size_of_the_dataset(made):
    assert list(made) == ["digits", "photographs", "stripes", "plain", "noise"]
    assert {(images.shape, images.dtype) for images in made.values()} == {((200, 48, 48, 3), np.dtype(np.uint8))}


def test_no_two_images_of_a_kind_are_the_same(made):
    assert all(len({image.tobytes() for image in images}) == 200 for images in made.values())


def test_the_same_seed_gives_the_same_images(made):
    assert all(np.array_equal(images, made[kind]) for kind, images in other_images.others(FLAT, 0))


def test_digits_are_no_other_images_for_a_dataset_of_digits():
    assert "digits" not in dict(other_images.others(load_digits().images, 0))
