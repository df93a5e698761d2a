"""Requests beside an earlier commit: which of the served versions are compared."""

import json
from pathlib import Path

import bench_requests
import pytest
from services import BenchError


def served(tmp_path: Path, *candidates: str) -> list[Path]:
    folders = [tmp_path / candidate for candidate in candidates]
    for folder in folders:
        folder.mkdir()
        (folder / "metadata.json").write_text(json.dumps({"candidate": folder.name}))
    return folders


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def test_an_int8_champion_is_compared_with_its_candidate(tmp_path):
    assert bench_requests.is_twin("cifar10", served(tmp_path, "pretrained_int8", "pretrained"))


def test_a_float32_champion_is_no_twin(tmp_path):
    assert not bench_requests.is_twin("cifar10", served(tmp_path, "pretrained", "pretrained_int8"))


@pytest.mark.parametrize("challengers", [[], ["scratch"], ["scratch_int8"]])
def test_an_int8_champion_without_its_candidate_is_refused(tmp_path, challengers):
    with pytest.raises(BenchError, match="not its candidate in float32"):
        bench_requests.is_twin("cifar10", served(tmp_path, "pretrained_int8", *challengers))


def test_a_champion_that_the_recipe_lacks_is_named(tmp_path):
    with pytest.raises(BenchError, match="recipe cifar10 has no wide, which is live"):
        bench_requests.is_twin("cifar10", served(tmp_path, "wide"))
