from pathlib import Path

import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.workspace import files, ledger, paths

RECIPE = config.load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")


def test_reads_are_counted_by_data(tmp_path):
    for digest in ("d1", "d1", "d2"):
        ledger.record_read(RECIPE, "scratch", digest, "a" * 64, tmp_path)
    assert ledger.count_reads("d1", tmp_path) == 2


def test_reads_of_all_recipes_count(tmp_path):
    for name in ("cifar10", "cifar10_10m"):
        ledger.record_read(RECIPE.model_copy(update={"name": name}), "scratch", "d1", "a" * 64, tmp_path)
    assert ledger.count_reads("d1", tmp_path) == 2


def test_without_a_record_there_are_no_reads(tmp_path):
    assert ledger.count_reads("d1", tmp_path) == 0


def test_a_new_read_leaves_the_earlier_lines_unchanged(tmp_path):
    ledger.record_read(RECIPE, "scratch", "d1", "a" * 64, tmp_path)
    before = paths.ledger_path(RECIPE, tmp_path).read_bytes()
    ledger.record_read(RECIPE, "pretrained", "d1", "b" * 64, tmp_path)
    assert paths.ledger_path(RECIPE, tmp_path).read_bytes().startswith(before)


def test_a_damaged_line_is_named(tmp_path):
    ledger.record_read(RECIPE, "scratch", "d1", "a" * 64, tmp_path)
    files.append_line(paths.ledger_path(RECIPE, tmp_path), '{"at": "2026')
    with pytest.raises(ValueError, match=r"test_reads\.jsonl, line 2 is damaged"):
        ledger.count_reads("d1", tmp_path)


PAIR = {"scratch": "a" * 64, "pretrained": "b" * 64}


def test_comparisons_are_numbered_in_turn(tmp_path):
    first = ledger.number_comparisons(RECIPE, PAIR, "c" * 64, "d1", tmp_path)
    second = ledger.number_comparisons(RECIPE, PAIR, "e" * 64, "d1", tmp_path)
    assert (first, second) == ({"scratch": 1, "pretrained": 2}, {"scratch": 3, "pretrained": 4})
    assert ledger.last_comparison("d1", tmp_path) == 4


def test_the_same_comparison_keeps_its_number(tmp_path):
    numbers = [ledger.number_comparisons(RECIPE, PAIR, "c" * 64, "d1", tmp_path) for _ in range(2)]
    assert numbers[0] == numbers[1]


def test_comparisons_of_all_recipes_count(tmp_path):
    ledger.number_comparisons(RECIPE.model_copy(update={"name": "other"}), PAIR, "c" * 64, "d1", tmp_path)
    assert ledger.number_comparisons(RECIPE, PAIR, "e" * 64, "d1", tmp_path) == {"scratch": 3, "pretrained": 4}


def test_new_test_images_start_at_one(tmp_path):
    ledger.number_comparisons(RECIPE, PAIR, "c" * 64, "d1", tmp_path)
    assert ledger.number_comparisons(RECIPE, PAIR, "c" * 64, "d2", tmp_path) == {"scratch": 1, "pretrained": 2}


def test_models_that_were_scored_before_count_as_comparisons(tmp_path):
    # Whoever scores nine models and compares the best one has chosen it on the test images.
    for artefact in "123456789":
        ledger.record_read(RECIPE, "scratch", "d1", artefact * 64, tmp_path)
    assert ledger.number_comparisons(RECIPE, {"scratch": "9" * 64}, "c" * 64, "d1", tmp_path) == {"scratch": 9}


def test_a_damaged_comparison_is_named(tmp_path):
    ledger.number_comparisons(RECIPE, PAIR, "c" * 64, "d1", tmp_path)
    files.append_line(paths.comparison_path(RECIPE, tmp_path), '{"at": "2026')
    with pytest.raises(ValueError, match=r"comparisons\.jsonl, line 3 is damaged"):
        ledger.last_comparison("d1", tmp_path)


def test_a_temporary_copy_of_dvc_records_in_the_workspace(tmp_path):
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    ledger.record_read(RECIPE, "scratch", "d1", "a" * 64, copy)
    assert ledger.count_reads("d1", tmp_path) == 1
