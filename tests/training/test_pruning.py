from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_training import SMALL, fixed_plan, trained

from mobilenet_pipeline.training import pruning, steps, train
from mobilenet_pipeline.training.batches import Images

LOSSES = np.array([0.1] * 800 + [3.0] * 190 + [np.nan] * 10, np.float32)
KNOWN = LOSSES < 1


def test_an_epoch_has_as_many_images_as_without_pruning():
    drawn, _ = pruning.draw(LOSSES, 0.5, (0, 1))
    assert (len(drawn), drawn.dtype) == (1000, np.int32)


def test_known_images_are_drawn_half_as_often_as_others():
    counts = sum(np.bincount(pruning.draw(LOSSES, 0.5, (0, epoch))[0], minlength=1000) for epoch in range(100))
    assert counts[KNOWN].mean() / counts[~KNOWN].mean() == pytest.approx(0.5, rel=0.03)


def test_an_image_without_a_loss_is_drawn_in_every_epoch():
    drawn, _ = pruning.draw(LOSSES, 0.9, (0, 1))
    assert set(range(990, 1000)) <= set(drawn.tolist())


def test_the_weights_make_up_for_what_is_left_out():
    drawn, weights = pruning.draw(LOSSES, 0.75, (0, 1))
    assert weights[drawn].mean() == pytest.approx(1, rel=1e-6)
    assert weights[0] / weights[-1] == pytest.approx(4)
    # The known images have the same part in the gradient as in an epoch of all images.
    assert weights[drawn][KNOWN[drawn]].sum() / len(drawn) == pytest.approx(KNOWN.mean(), abs=0.02)


def test_seed_and_epoch_decide_what_is_drawn():
    first, again, other = (pruning.draw(LOSSES, 0.5, seed)[0].tolist() for seed in ((0, 1), (0, 1), (0, 2)))
    assert first == again != other


def test_equal_losses_leave_nothing_out():
    drawn, weights = pruning.draw(np.full(100, 0.5, np.float32), 0.5, (0, 1))
    assert sorted(drawn.tolist()) == list(range(100))
    assert weights.tolist() == [1] * 100


@pytest.mark.parametrize(("epochs", "pruned"), [(2, []), (4, [1, 2]), (8, [1, 2, 3, 4, 5, 6])])
def test_the_first_epoch_and_the_last_eighth_are_not_pruned(epochs: int, pruned: list[int]) -> None:
    assert [epoch for epoch in range(epochs) if pruning.is_pruned(10 * epoch, 10, 10 * epochs)] == pruned


def test_a_pruned_training_draws_images_twice_in_pruned_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[np.ndarray | None] = []
    batches = steps.training_batches

    def note(images: Images, *words: Any) -> tf.data.Dataset:
        epochs.append(words[-1])
        return batches(images, *words)

    monkeypatch.setattr(steps, "training_batches", note)
    monkeypatch.setattr(train, "make_plan", fixed_plan(16, 1.0))
    trained(SMALL.model_copy(update={"pruned": 0.9, "epochs": 4}))
    assert [drawn is not None and len(set(drawn.tolist())) < 64 for drawn in epochs] == [False, True, True, False]


def test_workers_that_find_each_other_later_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.distribution, "workers", lambda: 2)
    with pytest.raises(ValueError, match="several workers cannot prune"):
        trained(SMALL.model_copy(update={"pruned": 0.5}))
