"""How many images are in memory at once."""

import pytest

from mobilenet_pipeline.system.memory import at_once


@pytest.mark.parametrize(("side", "images"), [(28, 250), (112, 250), (160, 125), (224, 64), (5000, 1)])
def test_fewer_large_images_are_in_memory_at_once(side: int, images: int) -> None:
    assert at_once(250, side, side) == images
