"""The model card, from made-up documents."""

import re
from pathlib import Path
from typing import Any

import pytest

from mobilenet_pipeline import card, config

CHECK = {"candidate": "scratch", "passed": True, "name": "size", "sentence": "scratch has 0.87 MB."}
VERDICT = {
    "promote": True,
    "winner": "scratch",
    "reason": "scratch is promoted.",
    "waits_for_approval": False,
    "checks": [CHECK, {**CHECK, "candidate": "pretrained", "sentence": "pretrained has 0.9 MB."}],
    "test_reads": 4,
    "warning": None,
}
SCORES = {"accuracy": 0.9, "rows": 20, "loss": 0.3, "top3_accuracy": 1.0, "calibration_error": 0.01}
EVALUATION = {
    "test": SCORES,
    "validation": SCORES,
    "corruptions": {"noise 1": 0.8, "blur 1": 0.6},
    "artefact": {"bytes": 870_000, "p50_ms": 0.12, "p99_ms": 0.3},
    "class_names": ["cat", "dog", "eel"],
    "confusion_matrix": [[8, 2, 0], [0, 10, 0], [0, 0, 0]],
    "overlap": 0,
    "data_digest": "d1",
}
DATASET = {"source": "digits", "rows": {"train": 1437, "test": 20}}


@pytest.fixture(scope="module")
def recipe() -> config.Recipe:
    return config.load_recipe("digits", Path(__file__).parents[2] / "params.yaml")


def made(recipe: config.Recipe, **changes: Any) -> str:
    training, origin = {"weights": "none", "epochs": 8.0, "cpu_minutes": 0.5}, {"run": "r1", "flow_run": None}
    return card.card(recipe, "scratch", "7", training, EVALUATION, DATASET, VERDICT | changes, origin)


@pytest.mark.parametrize(
    ("changes", "opening"),
    [
        ({}, "Promoted"),
        ({"promote": False}, "Not promoted"),
        ({"winner": "pretrained"}, "Not promoted"),
        ({"waits_for_approval": True}, "Passed the gate"),
    ],
)
def test_a_card_opens_with_the_decision(recipe: config.Recipe, changes: dict, opening: str):
    assert made(recipe, **changes).startswith(f"# {opening}: scratch, version 7 of digits-mobilenet\n")


def test_a_card_has_the_candidate_s_own_checks(recipe: config.Recipe):
    text = made(recipe)
    assert "- ✓ **size**: scratch has 0.87 MB." in text
    assert "pretrained has" not in text


def test_a_class_has_its_accuracy_interval_and_what_it_is_taken_for(recipe: config.Recipe):
    assert "- cat: **80.0%** of 10 (49.0% to 94.3%), else mostly dog (2)\n" in made(recipe)


def test_a_class_without_mistakes_is_taken_for_nothing_else(recipe: config.Recipe):
    assert "- dog: **100.0%** of 10 (72.2% to 100.0%)\n" in made(recipe)


def test_a_class_without_test_images_has_no_accuracy(recipe: config.Recipe):
    assert "- eel: no test images\n" in made(recipe)


def test_a_card_has_no_tables_because_mlflow_shows_them_without_space_between_columns(recipe: config.Recipe):
    assert not re.search(r"^\|", made(recipe), re.MULTILINE)


def test_where_a_version_comes_from_and_its_limits_stand_before_what_a_registry_may_cut_off(recipe: config.Recipe):
    headings = re.findall(r"^## (.+)$", made(recipe), re.MULTILINE)
    assert headings[:4] == ["Verdict", "Test figures", "Limits of use", "Where it comes from"]
    assert headings[-1] == "Model"


def test_whole_epochs_are_written_as_whole_numbers(recipe: config.Recipe):
    assert "8 epochs" in made(recipe)


def test_an_origin_that_is_not_known_is_left_out(recipe: config.Recipe):
    text = made(recipe)
    assert "- **run**: `r1`" in text
    assert "flow_run" not in text
