from pathlib import Path

import numpy as np
import pytest
from figure_pixels import pixels_of, shows
from planted_predictions import accurate

from mobilenet_pipeline.reports.candidate_figures import draw_beside_champion, draw_candidate, draw_mistakes
from mobilenet_pipeline.workspace.candidate import CandidateFiles

NAMES = [str(digit) for digit in range(10)]
OWN = {"confusion_matrix.png", "accuracy_per_class.png", "reliability.png", "corruptions.png"}


@pytest.fixture
def files() -> CandidateFiles:
    metrics = {"confusion_matrix": (np.eye(10, dtype=int) * 20).tolist(), "corruptions": {"noise 1": 0.6}}
    return CandidateFiles("scratch", Path(), training={}, metrics=metrics, dataset={}, history=[], sha256="a" * 64)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Predictions that miss the last ten of 200 test images, which lie from row 300 on."""
    predictions = accurate(190)
    return {"probabilities": predictions.probabilities, "labels": predictions.labels, "rows": np.arange(300, 500)}


def test_a_candidate_without_images_has_no_mistakes_drawn(files, arrays):
    drawn = draw_candidate(files, arrays, None, NAMES)
    assert set(drawn) == OWN
    assert all(pixels_of(png).any() for png in drawn.values())


def test_a_candidate_with_images_has_its_mistakes_drawn(files, arrays):
    drawn = draw_candidate(files, arrays, np.zeros((500, 32, 32, 3), np.uint8), NAMES)
    assert set(drawn) == OWN | {"worst_mistakes.png"}


def test_the_mistakes_are_rows_of_the_whole_dataset(arrays):
    images = np.zeros((500, 32, 32, 3), np.uint8)
    images[490:] = (0, 255, 0)
    images[190:200] = (255, 0, 255)
    png = draw_mistakes(images, arrays, NAMES)
    assert shows(png, "#00ff00")
    assert not shows(png, "#ff00ff")


def test_the_champion_is_drawn_beside_the_candidate():
    past = [("2", "2026-11-25", 0.75), ("3", "2026-11-26", 0.8)]
    drawn = draw_beside_champion("scratch", accurate(190), accurate(160, version="3"), NAMES, past)
    assert set(drawn) == {"confusion_beside_champion.png", "confusion_less_champion.png", "champions.png"}
    assert all(pixels_of(png).any() for png in drawn.values())


def test_without_earlier_champions_their_figure_is_left_out():
    drawn = draw_beside_champion("scratch", accurate(190), accurate(160, version="3"), NAMES, [])
    assert "champions.png" not in drawn
