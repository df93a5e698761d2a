"""The studies behind the settings of the recipes: what was measured is what studies.yaml describes."""

import json
from pathlib import Path

import pytest
import study
import yaml

from mobilenet_pipeline import config

ROOT = Path(__file__).resolve().parents[2]
STUDIES = yaml.safe_load((ROOT / "benchmarks" / "studies.yaml").read_text(encoding="utf-8"))
ROWS = [json.loads(line) for line in (ROOT / "docs/results/studies.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['study']} {row['changes']}")
def test_measured_rows_have_the_settings_of_their_study(row: dict):
    of = STUDIES[row["study"]]
    base = config.load_recipe(of["recipe"], ROOT / "params.yaml").candidate(of["candidate"]).model_dump()
    changes = {key: value for key, value in row["changes"].items() if key in base}
    assert study.differing(row, config.Candidate.model_validate(base | of["common"] | changes)) == []


def test_a_setting_that_differs_is_named():
    candidate = config.load_recipe("cifar10", ROOT / "params.yaml").candidate("scratch")
    row = {"candidate": {**candidate.model_dump(), "precision": "float32", "shift": 3, "average": 0.5}}
    assert study.differing(row, candidate) == ["shift"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_is_a_candidate(name: str):
    of = STUDIES[name]
    base = config.load_recipe(of["recipe"], ROOT / "params.yaml").candidate(of["candidate"]).model_dump()
    for changes in of["rows"]:
        config.Candidate.model_validate(base | of["common"] | changes)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['study']} {row['changes']}")
def test_a_measured_row_is_in_its_study_unless_a_setting_is_gone(row: dict):
    gone = set(row["changes"]) - set(config.Candidate.model_fields)
    assert gone or row["changes"] in STUDIES[row["study"]]["rows"]
    assert {key: row["candidate"][key] for key in row["changes"]} == row["changes"]
