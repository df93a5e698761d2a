"""The suites that people add to a recipe's validation."""

from pathlib import Path

import pytest

from mobilenet_pipeline.config import load_recipe
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
