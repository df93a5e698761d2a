import hashlib

import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.data import split
from mobilenet_pipeline.data.dataset import Dataset

LABELS = np.repeat(np.arange(10), 50)
LIMITS = config.Split(validation_share=0.2, seed=0)
FORMER = ["693c415f", "f3025009", "8314ff65", "939fdce9", "93212736"]
"""Hashes of the rows that version 0.1 held out."""


def test_every_class_has_the_same_share_held_out():
    _, held_out = split.stratify(LABELS, 0.2, seed=0)
    assert np.bincount(LABELS[held_out]).tolist() == [10] * 10


def test_the_two_sides_together_are_all_rows():
    kept, held_out = split.stratify(LABELS, 0.2, seed=0)
    assert np.sort(np.concatenate([kept, held_out])).tolist() == list(range(500))


def test_the_same_seed_gives_the_same_split():
    assert np.array_equal(split.stratify(LABELS, 0.2, 7)[1], split.stratify(LABELS, 0.2, 7)[1])


def test_another_seed_gives_another_split():
    assert not np.array_equal(split.stratify(LABELS, 0.2, 7)[1], split.stratify(LABELS, 0.2, 8)[1])


def test_of_a_small_class_at_least_one_image_is_held_out():
    _, held_out = split.stratify(np.array([0, 0, 1, 1]), 0.1, 0)
    assert np.array([0, 0, 1, 1])[held_out].tolist() == [0, 1]


@pytest.mark.parametrize(("labels", "share"), [([0, 0, 1], 0.2), ([0, 0, 1, 1], 0.0), ([0, 0, 1, 1], 1.0)])
def test_a_split_that_empties_a_side_is_refused(labels, share):
    with pytest.raises(ValueError, match="leaves one side of the split empty"):
        split.stratify(np.array(labels), share, 0)


def test_no_group_is_on_both_sides():
    groups = np.array([f"patient {number // 7}" for number in range(500)])
    kept, held_out = split.hold_out(LABELS, groups, 0.2, seed=0)
    assert not {*groups[kept]} & {*groups[held_out]}
    assert 60 < len(held_out) < 140
    assert {*LABELS[kept]} == {*LABELS[held_out]} == {*range(10)}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95])
@pytest.mark.parametrize("size", [5, 50])
def test_about_the_share_of_the_images_in_groups_is_held_out(share, size):
    groups = np.array([f"patient {number // size}" for number in range(500)])
    labels = np.arange(500) % 10
    kept, held_out = split.hold_out(labels, groups, share, seed=0)
    assert not {*groups[kept]} & {*groups[held_out]}
    assert len(held_out) / 500 == pytest.approx(share, abs=0.06 + size / 500)  # a group more or less


def test_few_groups_are_on_both_sides_of_a_large_share():
    groups = np.repeat(["a", "b", "c", "d"], 5)
    _, held_out = split.hold_out(np.arange(20) % 5, groups, 0.7, seed=0)
    assert len({*groups[held_out]}) in (2, 3)


def test_the_split_by_groups_of_a_usual_share_stays_what_it_was():
    groups = np.array([f"patient {number // 7}" for number in range(500)])
    held = [split.hold_out(LABELS, groups, share, seed=0)[1] for share in (0.1, 0.2, 0.25, 0.3, 0.5)]
    assert [hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:8] for rows in held] == FORMER


def test_images_without_a_group_are_split_one_by_one():
    groups = np.where(np.arange(500) < 5, "together", "")
    _, held_out = split.hold_out(LABELS, groups, 0.2, seed=0)
    assert len({*np.flatnonzero(groups != "")} & {*held_out}) in (0, 5)
    assert 90 <= len(held_out) <= 110


def test_of_a_class_with_two_groups_one_is_held_out():
    labels = np.array([0] * 20 + [1] * 4)
    groups = np.array([f"a{number}" for number in range(20)] + ["b", "b", "c", "c"])
    kept, held_out = split.hold_out(labels, groups, 0.2, seed=0)
    assert {*groups[held_out]} & {"b", "c"}
    assert {*groups[kept]} & {"b", "c"}


def test_a_class_of_one_group_is_refused():
    labels, groups = np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "b", "c", "d", "d", "d"])
    with pytest.raises(ValueError, match="images with label 1 are of one group"):
        split.hold_out(labels, groups, 0.3, 0)


@pytest.fixture
def data() -> Dataset:
    """Every fifth of 500 images is a test image."""
    images = np.zeros((500, 4, 4, 3), np.uint8)
    return Dataset(images, LABELS.astype(np.uint8), np.arange(500) % 5 == 0, "d1", list("0123456789"), 0)


def test_no_test_image_is_trained_or_validated_on(data):
    training, validation = split.split_rows(data, LIMITS)
    assert not data.is_test[np.concatenate([training, validation])].any()


def test_training_and_validation_are_all_other_images(data):
    training, validation = split.split_rows(data, LIMITS)
    assert np.sort(np.concatenate([training, validation])).tolist() == np.flatnonzero(~data.is_test).tolist()
    assert np.bincount(data.labels[validation]).tolist() == [8] * 10
