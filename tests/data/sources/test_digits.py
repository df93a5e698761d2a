import numpy as np
import pytest

from mobilenet_pipeline.data.sources.base import LabelledImages
from mobilenet_pipeline.data.sources.digits import load_digits


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return load_digits()


def test_digits_are_32_by_32_greys_over_the_whole_range(digits):
    assert (digits.images.shape, digits.images.dtype) == ((1797, 32, 32, 3), np.uint8)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert (digits.images == digits.images[..., :1]).all()


def test_the_test_split_of_digits_is_fixed_and_stratified(digits):
    assert int(digits.is_test.sum()) == 360
    assert np.bincount(digits.labels[digits.is_test]).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
