"""The model card, from made-up documents."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted_predictions import accurate, decide, verdict_on

from mobilenet_pipeline import config
from mobilenet_pipeline.gate import card
from mobilenet_pipeline.gate.checks import Check
from mobilenet_pipeline.workspace.candidate import CandidateFiles

CHECKS = [
    Check("size", "scratch", True, 0.87, 20, "scratch has 0.87 MB."),
    Check("size", "pretrained", True, 0.9, 20, "pretrained has 0.9 MB."),
]
SCORES = {
    "accuracy": 0.9,
    "rows": 20,
    "loss": 0.3,
    "macro_accuracy": 0.85,
    "top3_accuracy": 1.0,
    "calibration_error": 0.01,
}
METRICS = {
    "test": SCORES,
    "validation": SCORES,
    "corruptions": {"noise 1": 0.8, "blur 1": 0.6},
    "artefact": {"bytes": 870_000, "p50_ms": 0.12, "p99_ms": 0.3},
    "prediction_sets": {
        "stated_coverage": 0.95,
        "threshold": 0.3,
        "calibration_rows": 100,
        "coverage": 0.95,
        "mean_size": 1.25,
        "sizes": {"1": 15, "2": 5},
    },
    "unfamiliar": {
        "stated_share": 0.05,
        "threshold": 2.0,
        "test": 0.04,
        "corruptions": {"noise 1": 0.1, "blur 1": 0.3},
        "other_images": {"photographs": 0.9, "noise": 1.0},
    },
    "class_names": ["cat", "dog", "eel"],
    "confusion_matrix": [[8, 2, 0], [0, 10, 0], [0, 0, 0]],
    "overlap": 0,
    "data_digest": "d1",
}
FILES = CandidateFiles(
    name="scratch",
    folder=Path("models/digits/scratch"),
    training={"weights": "none", "epochs": 8.0, "cpu_minutes": 0.5},
    metrics=METRICS,
    dataset={"source": "digits", "rows": {"train": 1437, "test": 20}},
    history=[],
    sha256="a" * 64,
)


@pytest.fixture(scope="module")
def recipe() -> config.Recipe:
    return config.load_recipe("digits", Path(__file__).parents[2] / "params.yaml")


def made(recipe: config.Recipe, files: CandidateFiles = FILES, **changes: Any) -> str:
    """Return the card of scratch after a verdict that promotes it, but for the `changes`."""
    decision = decide(accurate(190), accurate(150), None)
    verdict = verdict_on(decision, **({"reason": "scratch is promoted.", "checks": CHECKS} | changes))
    return card.write_card(recipe, files, "7", verdict, {"run": "r1", "flow_run": None})


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


@pytest.mark.parametrize(
    ("facts", "processor"),
    [
        ({}, "E"),
        ({"replicas": 2, "planned_replicas": 2, "global_batch": 64}, "E, 2 replicas"),
        (
            {"replicas": 1, "planned_replicas": 2, "global_batch": 64},
            "E, 1 replica instead of 2, with their global batch of 64",
        ),
    ],
)
def test_a_card_says_how_many_replicas_trained(recipe: config.Recipe, facts: dict, processor: str):
    files = replace(FILES, training=FILES.training | {"machine": {"cpu": "E"}} | facts)
    assert f"- **processor**: {processor}\n" in made(recipe, files=files)


def test_a_card_has_the_share_that_was_held_out_for_validation(recipe: config.Recipe):
    metrics = METRICS | {"validation": SCORES | {"rows": 479}}
    assert "1,437 for training, 33% of them held out" in made(recipe, files=replace(FILES, metrics=metrics))


def test_a_card_has_the_accuracy_without_near_duplicates(recipe: config.Recipe):
    twins = {"rows": 4, "accuracy_with": 1.0, "accuracy_without": 0.875}
    text = made(recipe, files=replace(FILES, metrics=METRICS | {"near_duplicates": twins}))
    line = "87.50% of the 16 test images without a near twin in the training images; 100.00% of the 4 with one"
    assert f"- **accuracy without near duplicates**: {line}\n" in text


@pytest.mark.parametrize("twins", [None, {"rows": 20, "accuracy_with": 0.9, "accuracy_without": None}])
def test_a_card_without_such_an_accuracy_has_no_line(recipe: config.Recipe, twins: dict | None):
    text = made(recipe, files=replace(FILES, metrics=METRICS | {"near_duplicates": twins}))
    assert "near duplicates" not in text


def test_a_class_has_its_interval_and_its_confusion(recipe: config.Recipe):
    assert "- cat: **80.0%** of 10 (49.0% to 94.3%); most often confused with dog (2)\n" in made(recipe)


def test_a_class_without_mistakes_has_no_confusion(recipe: config.Recipe):
    assert "- dog: **100.0%** of 10 (72.2% to 100.0%)\n" in made(recipe)


def test_a_class_without_test_images_has_no_accuracy(recipe: config.Recipe):
    assert "- eel: no test images\n" in made(recipe)


def test_a_card_lists_the_worst_and_the_best_of_many_classes(recipe: config.Recipe):
    names = [f"class {number}" for number in range(40)]
    matrix = [[9 * (row == column) + (column == 0) for column in range(40)] for row in range(40)]
    matrix[35] = [10 * (column == 1) for column in range(40)]
    text = made(recipe, files=replace(FILES, metrics=METRICS | {"class_names": names, "confusion_matrix": matrix}))
    assert "The 10 classes with the lowest and the 10 with the highest accuracy of 40; per_class.csv of the run" in text
    assert text.index("- class 35: **0.0%**") < text.index("- class 0: **100.0%**")
    assert "The model has 40 classes" in text
    assert "class 29 and 10 more." in text


def test_a_card_states_coverage_and_size_of_the_prediction_sets(recipe: config.Recipe):
    sentence = "95.00% of the images (95 % interval: 76.39% to 99.11%; 95 % stated), with 1.25 classes on average"
    assert sentence in made(recipe)


def test_a_card_says_how_often_images_are_flagged(recipe: config.Recipe):
    sentence = "4.0% of the test images (5 % stated), 20.0% of the corrupted ones; 90% of photographs, 100% of noise"
    assert sentence in made(recipe)


def test_a_card_of_an_earlier_evaluation_lacks_both(recipe: config.Recipe):
    older = {key: value for key, value in METRICS.items() if key not in ("prediction_sets", "unfamiliar")}
    text = made(recipe, replace(FILES, metrics=older))
    assert "**prediction sets**" not in text
    assert "**flagged as unfamiliar**" not in text


def test_a_card_has_no_tables(recipe: config.Recipe):
    """MLflow shows tables without space between the columns."""
    assert not re.search(r"^\|", made(recipe), re.MULTILINE)


def test_the_model_is_the_last_section(recipe: config.Recipe):
    """A registry may cut off the end of a card."""
    headings = re.findall(r"^## (.+)$", made(recipe), re.MULTILINE)
    assert headings[:4] == ["Verdict", "Test figures", "Limits of use", "Where it comes from"]
    assert headings[-1] == "Model"


def test_whole_epochs_are_written_as_whole_numbers(recipe: config.Recipe):
    assert "8 epochs" in made(recipe)


def test_an_unknown_origin_is_left_out(recipe: config.Recipe):
    text = made(recipe)
    assert "- **run**: `r1`" in text
    assert "flow_run" not in text


def test_a_card_says_how_often_the_test_images_were_read(recipe: config.Recipe):
    assert "scored 4 times on these test images" in made(recipe, test_reads=4)
    assert "collect new test images" in made(recipe, warning="collect new test images")


def test_a_card_names_the_size_of_the_images(recipe: config.Recipe):
    assert "32 by 32 pixels" in made(recipe)


def test_a_card_warns_of_images_scaled_to_0_to_1(recipe: config.Recipe):
    assert "take uint8 pixels, 0 to 255. An image scaled to 0 to 1 is black to them" in made(recipe)
