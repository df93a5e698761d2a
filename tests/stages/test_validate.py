"""The suites that people add to a recipe's validation."""

from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.stages import validate


@pytest.fixture
def suites(workspace: Path) -> Path:
    """The folder of added suites, which is empty."""
    (workspace / validate.ADDITIONS).mkdir(parents=True)
    return validate.ADDITIONS


def test_a_recipe_without_a_suite_adds_nothing(suites: Path) -> None:
    assert validate.additions(load_recipe("digits")) is None


def test_a_suite_has_its_recipe_s_name(suites: Path) -> None:
    (suites / "digits.json").write_text("{}")
    (suites / "seed.json").write_text("{}")
    assert validate.additions(load_recipe("digits")) == suites / "digits.json"


def test_a_suite_of_no_recipe_is_named(suites: Path) -> None:
    (suites / "digts.json").write_text("{}")
    with pytest.raises(ValueError, match=r"digts\.json belongs to no recipe \(did you mean digits\?\)"):
        validate.additions(load_recipe("digits"))


def test_near_duplicates_are_described_for_people() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images[2] = images[1]
    data = Dataset(images, np.array([0, 1, 0, 1], np.uint8), np.array([False, False, True, True]), "d1", ["a", "b"], 1)
    twins = validate.near_duplicates_of(data)
    assert twins["pairs"] == [[2, 1, 0, 1.0]]
    assert twins["sentence"].startswith("1 of 2 test images (50.0%) have a near twin among the training images, 1 of")
