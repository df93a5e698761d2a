"""The studies that the recipes' choices come from, and the page that shows them."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mobilenet_pipeline import config

ROOT = Path(__file__).resolve().parents[2]
STUDIES = yaml.safe_load((ROOT / "benchmarks" / "studies.yaml").read_text(encoding="utf-8"))
ROWS = [json.loads(line) for line in (ROOT / "docs/results/studies.jsonl").read_text(encoding="utf-8").splitlines()]


def program(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return program("page")


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return program("accuracy")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return program("study")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['study']} {row['changes']}")
def test_a_study_s_rows_to_come_would_have_the_knobs_of_those_that_were_measured(row: dict, study: ModuleType):
    of = STUDIES[row["study"]]
    base = config.load_recipe(of["recipe"], ROOT / "params.yaml").candidate(of["candidate"]).model_dump()
    changes = {key: value for key, value in row["changes"].items() if key in base}
    assert study.differing(row, config.Candidate.model_validate(base | of["common"] | changes)) == []


def test_a_knob_that_a_measured_row_had_otherwise_is_named(study: ModuleType):
    candidate = config.load_recipe("cifar10", ROOT / "params.yaml").candidate("scratch")
    row = {"candidate": {**candidate.model_dump(), "precision": "float32", "shift": 2, "average": 0.5}}
    assert study.differing(row, candidate) == ["shift"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_is_a_candidate(name: str):
    study = STUDIES[name]
    base = config.load_recipe(study["recipe"], ROOT / "params.yaml").candidate(study["candidate"]).model_dump()
    for changes in study["rows"]:
        config.Candidate.model_validate(base | study["common"] | changes)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['study']} {row['changes']}")
def test_what_was_measured_is_a_row_of_its_study_or_a_knob_that_is_gone(row: dict):
    gone = set(row["changes"]) - set(config.Candidate.model_fields)
    assert gone or row["changes"] in STUDIES[row["study"]]["rows"]
    assert {key: row["candidate"][key] for key in row["changes"]} == row["changes"]


def test_the_page_shows_what_was_measured(page: ModuleType):
    text = (ROOT / "docs/results/training.md").read_text(encoding="utf-8")
    assert page.filled(text, ROOT / "docs/results") == text


def test_a_study_is_shown_beside_its_first_row(page: ModuleType):
    figures = {"million_multiply_adds": 45.3, "epochs": 3, "cpu_minutes": 8.4, "train_accuracy": 0.9}
    rows = [
        {"changes": {}, "validation_accuracy": 0.92} | figures,
        {"changes": {"flip": "random"}, "validation_accuracy": 0.915} | figures,
    ]
    assert page.study_table(rows).splitlines()[-1] == (
        "| `flip: random` | 45.3 M | 3 | 8.4 | 90.00% | 91.50% | -0.50 |"
    )


def test_a_candidate_is_held_against_the_bar_of_its_budget(page: ModuleType):
    row = {"candidate": "scratch", "recipe": "cifar10", "cpu_minutes": 59.5, "test_accuracy": 0.913, "sd": None}
    runs = [{"git_commit": commit * 40} for commit in "aba"]
    table = page.accuracy_table([row | {"seeds": 3, "runs": runs}])
    assert "| 91.30% | 3 | 91.0% in 60 | 92.0% | aaaaaaa, bbbbbbb |" in table


def test_a_recipe_of_other_images_is_held_against_no_bar(page: ModuleType):
    row = {"candidate": "scratch", "recipe": "digits", "cpu_minutes": 0.5, "test_accuracy": 0.97, "sd": None}
    table = page.accuracy_table([row | {"seeds": 1, "runs": [{"git_commit": "a" * 40}]}])
    assert "| 97.00% | 1 | – | – | aaaaaaa |" in table


def test_a_training_that_an_earlier_commit_has_not_finished_is_named(
    accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(accuracy, "CLONES", tmp_path)
    for commit, left in (("aaaaaaa", "checkpoint.npz"), ("bbbbbbb", "model.keras")):
        folder = tmp_path / f"cifar10-scratch-0-{commit}" / "models" / "cifar10" / "scratch"
        folder.mkdir(parents=True)
        (folder / left).touch()
    assert accuracy.unfinished("cifar10", "scratch", 0) == ["aaaaaaa"]
    assert accuracy.unfinished("cifar10", "scratch", 1) == []


@pytest.mark.parametrize(("threads", "prefix"), [(None, ""), ("2", "TF_NUM_INTRAOP_THREADS=2 ")])
def test_the_command_of_a_row_is_one_that_trains_with_as_many_threads(
    accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, threads: str | None, prefix: str
):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", threads)
    chosen = argparse.Namespace(recipe="cifar10_90m", candidate="scratch", seeds=[0, 1])
    found = [{"test_accuracy": 0.9, "cpu_minutes": 20.0, "git_commit": "a" * 40}]
    expected = f"{prefix}python benchmarks/accuracy.py cifar10_90m scratch --seeds 0 1"
    assert accuracy.summarise(chosen, found)["command"] == expected
