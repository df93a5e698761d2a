import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.training import pruning

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


def test_several_workers_are_refused():
    candidate = config.load_recipe("digits").candidate("scratch").model_dump()
    with pytest.raises(ValueError, match="pruned needs workers: 1"):
        config.Candidate.model_validate(candidate | {"pruned": 0.5, "workers": 2})
