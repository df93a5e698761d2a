import resource
from pathlib import Path

import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.workspace import files, ledger, paths

RECIPE = config.load_recipe("digits", Path(__file__).resolve().parents[2] / "params.yaml")


def test_reads_are_counted_for_the_data_they_were_of(tmp_path):
    for digest in ("d1", "d1", "d2"):
        ledger.record_read(RECIPE, "scratch", digest, "a" * 64, tmp_path)
    assert ledger.count_reads("d1", tmp_path) == 2


def test_reads_for_all_recipes_count(tmp_path):
    for name in ("cifar10", "cifar10_10m"):
        ledger.record_read(RECIPE.model_copy(update={"name": name}), "scratch", "d1", "a" * 64, tmp_path)
    assert ledger.count_reads("d1", tmp_path) == 2


def test_without_a_record_there_were_no_reads(tmp_path):
    assert ledger.count_reads("d1", tmp_path) == 0


def test_a_read_is_added_and_nothing_before_it_is_changed(tmp_path):
    ledger.record_read(RECIPE, "scratch", "d1", "a" * 64, tmp_path)
    before = paths.ledger_path(RECIPE, tmp_path).read_bytes()
    ledger.record_read(RECIPE, "pretrained", "d1", "b" * 64, tmp_path)
    assert paths.ledger_path(RECIPE, tmp_path).read_bytes().startswith(before)


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
    ledger.record_read(RECIPE, "scratch", "d1", "a" * 64, tmp_path)
    files.append_line(paths.ledger_path(RECIPE, tmp_path), '{"at": "2026')
    with pytest.raises(ValueError, match=r"test_reads\.jsonl, line 2 is damaged"):
        ledger.count_reads("d1", tmp_path)


def test_a_line_that_the_disk_has_no_room_for_leaves_the_record_whole(tmp_path):
    path = tmp_path / "record.jsonl"
    files.append_line(path, "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, limits[1]))  # as if the disk were full
        with pytest.raises(OSError, match="large"):
            files.append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "first\n"
