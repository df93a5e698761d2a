"""How many images a model is asked at once, so that its memory has a bound at any image size. Pure."""

PIXELS = 256 * 112**2
"""Most pixels that a model is asked at once: its memory grows with them."""


def at_once(count: int, height: int, width: int) -> int:
    """Return how many of `count` images of this height and width in pixels a model is asked at once, at least one."""
    return max(1, min(count, PIXELS // (height * width)))
