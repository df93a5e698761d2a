import numpy as np
import pytest

from mobilenet_pipeline import split

LABELS = np.repeat(np.arange(10), 50)


def test_every_class_gives_the_same_share():
    _, held_out = split.stratify(LABELS, 0.2, seed=0)
    assert np.bincount(LABELS[held_out]).tolist() == [10] * 10


def test_the_two_sides_are_all_rows_once():
    kept, held_out = split.stratify(LABELS, 0.2, seed=0)
    assert np.sort(np.concatenate([kept, held_out])).tolist() == list(range(500))


def test_the_same_seed_gives_the_same_split():
    assert np.array_equal(split.stratify(LABELS, 0.2, 7)[1], split.stratify(LABELS, 0.2, 7)[1])


def test_another_seed_gives_another_split():
    assert not np.array_equal(split.stratify(LABELS, 0.2, 7)[1], split.stratify(LABELS, 0.2, 8)[1])


def test_a_share_that_empties_a_side_is_refused():
    with pytest.raises(ValueError, match="leaves one side of the split empty"):
        split.stratify(np.array([0, 0, 1, 1]), 0.1, 0)


def test_no_test_row_is_trained_or_validated_on():
    is_test = np.arange(500) % 5 == 0
    kept, held_out = split.training_rows(LABELS, is_test, 0.2, 0)
    assert not is_test[np.concatenate([kept, held_out])].any()
