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
