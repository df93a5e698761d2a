"""How many images are in memory at once, so that the memory has a bound at any image size. Pure."""

PIXELS = 256 * 112**2
"""Most pixels of images that are in memory at once; a model's memory grows with them."""


def at_once(count: int, height: int, width: int) -> int:
    """Return how many of `count` images of this height and width in pixels are in memory at once, at least one."""
    return max(1, min(count, PIXELS // (height * width)))
