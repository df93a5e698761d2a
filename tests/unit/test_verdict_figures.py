import io

import numpy as np
from PIL import Image

from mobilenet_pipeline import figures, verdict_figures

NAMES = ["cat", "dog", "a $price$ tag"]


def pixels_of(png: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert 250 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 2600
    return pixels


def shows(png: bytes, colour: str) -> bool:
    wanted = figures.shares_of(colour) * 255
    return bool((np.abs(pixels_of(png) - wanted).max(axis=2) < 3).any())


def answers(sure: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(300) % 3
    return np.where(np.eye(3)[labels] > 0, sure, (1 - sure) / 2), labels


def test_reliability_shows_both_candidates_in_their_colours():
    drawn = verdict_figures.reliability({"scratch": answers(0.7), "pretrained": answers(0.9)})
    assert all(shows(drawn, colour) for colour in figures.COLOURS.values())


def test_corruptions_show_a_row_for_each():
    few, many = (
        verdict_figures.corruptions({"scratch": {f"noise {number}": 0.5 for number in range(count)}})
        for count in (4, 12)
    )
    assert pixels_of(many).shape[0] > 1.8 * pixels_of(few).shape[0]


def test_a_difference_of_confusions_is_blue_for_the_better_and_orange_for_the_worse():
    first, better = [[8, 2, 0], [1, 9, 0], [0, 0, 5]], [[10, 0, 0], [1, 9, 0], [0, 0, 5]]
    blue, orange = (
        pixels_of(verdict_figures.confusion_difference(*pair, "b less a", NAMES)).astype(float).mean(axis=(0, 1))
        for pair in ((first, better), (better, first))
    )
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_two_equal_confusion_matrices_have_a_difference_that_can_be_drawn():
    same = [[8, 2, 0], [1, 9, 0], [0, 0, 5]]
    pixels_of(verdict_figures.confusion_difference(same, same, "b less a", NAMES))


def test_a_single_champion_can_be_drawn():
    assert shows(verdict_figures.champions([("2", "2026-11-25", 0.94)]), figures.GOOD)
