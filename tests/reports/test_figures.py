import io

import numpy as np
import pytest
from figure_pixels import pixels_of, shows
from PIL import Image

from mobilenet_pipeline.reports import figures

NAMES = ["cat", "dog", "a $price$ tag"]
MATRIX = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 3
HISTORY = {f"{split}_{key}": [0.9, 0.5, 0.4] for split in ("train", "validation") for key in ("loss", "accuracy")}


def test_learning_curves_show_both_candidates_in_their_colours() -> None:
    png = figures.learning_curves({"scratch": HISTORY, "pretrained": HISTORY})
    assert all(shows(png, colour) for colour in figures.palette(["scratch", "pretrained"]).values())


def test_candidates_and_twins_have_colours_of_their_own() -> None:
    names = [f"{name}{twin}" for name in "abcde" for twin in ("", "_int8")]
    assert len(set(figures.palette(names).values())) == len(names)


def test_a_twin_does_not_change_the_colours_of_the_candidates() -> None:
    assert figures.palette(["a", "a_int8", "b"])["b"] == figures.palette(["a", "b"])["b"]


def test_a_candidate_whose_name_begins_like_another_s_has_a_colour_of_its_own():
    names = ["a", "a_int8", "a_v3", "a_v3_int8", "a_long"]
    assert len(set(figures.palette(names).values())) == len(names)


def test_learning_curves_of_one_quantity_are_half_as_wide() -> None:
    both = pixels_of(figures.learning_curves({"scratch": HISTORY}))
    one = pixels_of(figures.learning_curves({"scratch": HISTORY}, ["loss"]))
    assert one.shape[1] < 0.6 * both.shape[1]


def test_learning_curves_read_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    assert figures.learning_curves({"scratch": pandas.DataFrame(HISTORY)}) == figures.learning_curves(
        {"scratch": HISTORY}
    )


def test_learning_curves_of_a_single_epoch_can_be_drawn() -> None:
    history = {key: values[:1] for key, values in HISTORY.items()}
    png = figures.learning_curves({"scratch": history})
    assert pixels_of(png).shape[0] > 300
    assert shows(png, figures.PALETTE[0])


def test_confusion_matrices_stand_side_by_side() -> None:
    one = pixels_of(figures.confusion_matrices({"scratch": MATRIX}, NAMES))
    two = pixels_of(figures.confusion_matrices({"scratch": MATRIX, "pretrained": MATRIX}, NAMES))
    assert two.shape[1] > 1.7 * one.shape[1]


def test_mistakes_have_another_colour_than_correct_answers() -> None:
    right = pixels_of(figures.confusion_matrices({"scratch": [[9, 0], [0, 9]]}, ["a", "b"]))
    wrong = pixels_of(figures.confusion_matrices({"scratch": [[0, 9], [9, 0]]}, ["a", "b"]))
    assert right[..., 2].mean() > wrong[..., 2].mean()


def many(answer: int) -> np.ndarray:
    """Return the confusion matrix of a model that is right about 1,000 classes, and calls class 500 `answer`."""
    answers = np.arange(1000)
    answers[500] = answer
    return np.eye(1000, dtype=int)[answers] * 9


def test_a_thousand_classes_are_a_heat_map_of_one_size() -> None:
    names = [f"class {number} of a $thousand$" for number in range(1000)]
    first, second = (figures.confusion_matrices({"scratch": many(answer)}, names) for answer in (500, 800))
    assert pixels_of(first).shape[1] < 1400
    assert shows(second, "#bb5532")  # one orange cell among a million
    assert not shows(first, "#bb5532")


def test_accuracy_per_class_draws_the_least_accurate_of_a_thousand() -> None:
    assert pixels_of(figures.accuracy_per_class({"scratch": many(800)}, list(map(str, range(1000))))).shape[0] < 2600


def test_the_sample_sheet_of_a_thousand_classes_has_the_first_and_the_last() -> None:
    images = np.zeros((1000, 8, 8, 3), np.uint8)
    images[0], images[-1], images[1] = (0, 255, 0), (255, 0, 255), (255, 255, 0)
    png = figures.sample_sheet(images, np.arange(1000), list(map(str, range(1000))))
    assert (shows(png, "#00ff00"), shows(png, "#ff00ff"), shows(png, "#ffff00")) == (True, True, False)


def test_accuracy_per_class_draws_a_class_without_images() -> None:
    pixels = pixels_of(figures.accuracy_per_class({"scratch": MATRIX, "pretrained": MATRIX}, NAMES))
    assert pixels.shape[0] > 300


def test_the_sample_sheet_shows_the_first_images_of_a_class() -> None:
    images = np.zeros((30, 32, 32, 3), np.uint8)
    images[2] = (0, 255, 0)  # the first image of class 2
    assert shows(figures.sample_sheet(images, LABELS, NAMES), "#00ff00")


def test_a_sample_sheet_of_few_images_can_be_drawn() -> None:
    assert pixels_of(figures.sample_sheet(IMAGES[:4], LABELS[:4], NAMES)).shape[1] > 300


def test_a_pair_of_near_twins_stands_side_by_side() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[0], images[2] = (255, 0, 0), (0, 0, 255)
    pixels = np.asarray(Image.open(io.BytesIO(figures.twin_sheet(images, [[0, 2, 4, 0.9]]))).convert("RGB"))
    left, right = (np.flatnonzero((pixels == colour).all(axis=2).any(axis=0)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert 0 < left.max() < right.min()


def test_the_worst_mistakes_are_the_most_confident_ones() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.99, 0.01]])
    assert figures.most_confident_mistakes(np.array([0, 1, 1, 1]), probabilities, 2).tolist() == [3, 2]


def test_worst_mistakes_leave_out_correct_answers() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0], images[1] = (0, 255, 0), (255, 0, 255)
    png = figures.worst_mistakes(images, np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), NAMES)
    assert shows(png, "#ff00ff")
    assert not shows(png, "#00ff00")


def test_a_model_without_mistakes_gets_a_sentence() -> None:
    png = figures.worst_mistakes(IMAGES[:1], LABELS[:1], np.array([[1.0, 0.0, 0.0]]), NAMES)
    assert (np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 100).any()


def test_the_same_numbers_give_the_same_bytes() -> None:
    first, second = (figures.confusion_matrices({"scratch": MATRIX}, NAMES) for _ in range(2))
    assert first == second
    assert b"Software" not in first
