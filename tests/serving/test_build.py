"""The program that builds a Bento: what the built Bento contains."""

from pathlib import Path

import pytest
import yaml

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.release import bento


@pytest.fixture
def built(bento_store: Path, served_recipe: Recipe) -> Path:
    """The folder of a Bento that the program built."""
    return bento_store / "bentos" / str(bento.live(served_recipe)).replace(":", "/")


def test_a_bento_has_pinned_serving_packages_only(built: Path) -> None:
    lines = (built / "env" / "python" / "requirements.txt").read_text().split()
    assert {"bentoml", "starlette", *bento.PACKAGES, *bento.OPTIONAL} <= {line.partition("==")[0] for line in lines}
    assert not any(line.startswith(("tensorflow", "keras", "mlflow")) for line in lines)
    assert all("==" in line for line in lines)


def test_a_bento_has_its_models_and_labels(built: Path) -> None:
    document = yaml.safe_load((built / "bento.yaml").read_text())
    versions = [model["tag"].partition(":")[2].partition("-")[0] for model in document["models"]]
    assert sorted(versions) == ["1", "2"]
    assert document["labels"] == {"recipe": "cifar10", "registered_model": "cifar10-mobilenet"}
