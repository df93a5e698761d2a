import numpy as np
from figure_pixels import pixels_of, shows

from mobilenet_pipeline.reports import figures, verdict_figures

NAMES = ["cat", "dog", "a $price$ tag"]


def answers(sure: float) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are always right, with this confidence, and their labels."""
    labels = np.arange(300) % 3
    return np.where(np.eye(3)[labels] > 0, sure, (1 - sure) / 2), labels


def test_reliability_shows_both_candidates_in_their_colours():
    drawn = verdict_figures.reliability({"scratch": answers(0.7), "pretrained": answers(0.9)})
    assert all(shows(drawn, colour) for colour in figures.palette(["scratch", "pretrained"]).values())


def test_corruptions_show_a_row_for_each():
    few, many = (
        verdict_figures.corruptions({"scratch": {f"noise {number}": 0.5 for number in range(count)}})
        for count in (4, 12)
    )
    assert pixels_of(many).shape[0] > 1.8 * pixels_of(few).shape[0]


def sets(sizes: dict[str, int]) -> dict:
    return {"scratch": {"sizes": sizes}}


def test_set_sizes_show_a_row_for_each_bin():
    few, many = (verdict_figures.set_sizes(sets({"1": 90, largest: 10})) for largest in ("4", "950"))
    assert pixels_of(many).shape[0] > 1.8 * pixels_of(few).shape[0]


def test_set_sizes_can_be_drawn_for_sets_of_one_class():
    assert pixels_of(verdict_figures.set_sizes(sets({"1": 100}))).std() > 0


def test_a_difference_is_blue_for_better_and_orange_for_worse():
    first, better = [[8, 2, 0], [1, 9, 0], [0, 0, 5]], [[10, 0, 0], [1, 9, 0], [0, 0, 5]]
    blue, orange = (
        pixels_of(verdict_figures.confusion_difference(*pair, "b less a", NAMES)).astype(float).mean(axis=(0, 1))
        for pair in ((first, better), (better, first))
    )
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_a_difference_of_many_classes_does_not_mix_better_and_worse():
    second = np.zeros((500, 500), int)
    second[100, 100] = second[101, 100] = 9  # in one block of the heat map
    drawn = verdict_figures.confusion_difference(0 * second, second, "b less a", [f"class {n}" for n in range(500)])
    assert pixels_of(drawn).shape[1] < 1400
    assert shows(drawn, "#bb5532")


def test_the_difference_of_equal_matrices_can_be_drawn():
    same = [[8, 2, 0], [1, 9, 0], [0, 0, 5]]
    pixels_of(verdict_figures.confusion_difference(same, same, "b less a", NAMES))


def test_a_single_champion_can_be_drawn():
    assert shows(verdict_figures.champions([("2", "2026-11-25", 0.94)]), figures.GOOD)
