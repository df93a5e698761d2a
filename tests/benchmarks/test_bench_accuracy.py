"""Trainings beside those of an earlier commit: which rows are compared, and with what."""

import bench_accuracy
import pytest

OLD = {
    "recipe": "cifar10_10m",
    "candidate": "scratch",
    "cpu_minutes": 19.5,
    "test_accuracy": 0.873,
    "commit": "a" * 40,
    "runs": [{"epochs": 9.0, "machine": {"cpu": "another"}}, {"epochs": 11.0, "machine": {"cpu": "another"}}],
}
NEW = OLD | {
    "cpu_minutes": 10.8,
    "test_accuracy": 0.88,
    "commit": "b" * 40,
    "runs": [{"epochs": 20.0, "machine": {"cpu": "this"}}],
}


def test_the_earlier_minutes_are_those_of_its_epochs_on_this_machine():
    minutes, accuracy = bench_accuracy.compared(NEW, OLD, epochs=12.5)
    assert (minutes.value, minutes.base, minutes.bar) == (10.8, pytest.approx(19.5 * 10 / 12.5), "ratio ≤ 0.6")
    assert (accuracy.value, accuracy.base, accuracy.bar) == (0.88, 0.873, "value ≥ 0.873")


def test_a_much_higher_accuracy_may_take_the_earlier_minutes():
    minutes, accuracy = bench_accuracy.compared(NEW | {"test_accuracy": 0.886}, OLD, epochs=12.5)
    assert (minutes.bar, accuracy.bar) == ("ratio ≤ 1", "value ≥ 0.885")


def test_only_rows_that_were_trained_again_are_compared():
    other, added = OLD | {"candidate": "pretrained"}, NEW | {"recipe": "cifar10_2h"}
    assert bench_accuracy.retrained([NEW, other, added], [OLD, other], "this") == [(NEW, OLD)]


def test_without_such_rows_the_command_that_trains_is_named():
    with pytest.raises(ValueError, match="`make accuracy` trains a candidate again"):
        bench_accuracy.retrained([OLD], [OLD], "this")


def test_a_row_of_another_processor_is_named():
    with pytest.raises(ValueError, match="cifar10_10m scratch was trained on this, and this is a third"):
        bench_accuracy.retrained([NEW], [OLD], "a third")
