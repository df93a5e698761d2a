import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_training import SMALL, fixed_plan, trained

from mobilenet_pipeline.models import network
from mobilenet_pipeline.training import budget, distribution, loop, steps, train

BUDGETED = SMALL.model_copy(update={"epochs": None, "cpu_minutes": 1e3})


@pytest.mark.parametrize(("seconds", "count"), [(0.01, 10), (0.5, 4), (3.4, 1)])
def test_a_stop_request_waits_two_seconds_or_one_step(seconds, count):
    assert loop.steps_at_once(seconds) == count


def test_a_loss_that_is_not_finite_stops_training():
    with pytest.raises(loop.DivergedError, match=r"the loss is (nan|inf) at step \d+: training stopped"):
        trained(SMALL.model_copy(update={"learning_rate": 1e38, "warmup": 1.0}))


def test_a_validation_loss_that_is_not_finite_stops_training():
    # One step an epoch: the first loss is taken before the weights have grown beyond all numbers.
    wild = SMALL.model_copy(update={"learning_rate": 1e38, "warmup": 1.0, "epochs": 1, "batch_size": 64})
    with pytest.raises(loop.DivergedError, match=r"the validation loss is (nan|inf) at step 1: training stopped"):
        trained(wild)


def test_an_input_size_ends_at_the_same_step_in_any_chunk(monkeypatch):
    growing = SMALL.model_copy(update={"input_sizes": [32, 40]})
    monkeypatch.setattr(train, "make_plan", fixed_plan(6, 1.0, 1.0))
    weights = []
    for chunk in (1, 4):
        monkeypatch.setattr(loop, "CHUNK", chunk)
        weights.append(trained(growing).model.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


def test_an_epoch_is_validated_at_its_own_input_size(monkeypatch):
    sizes: list[int] = []
    resize = network.resize
    monkeypatch.setattr(network, "resize", lambda x, c, size: sizes.append(size) or resize(x, c, size))
    monkeypatch.setattr(train, "make_plan", fixed_plan(8, 1.0, 1.0))
    result = trained(SMALL.model_copy(update={"input_sizes": [32, 48]}))
    assert sizes == [32, 32, 48, 48, 48]  # a graph to train and one to validate at each, and the finished model
    assert result.model.get_layer("conv1").output.shape[1] == 24


def test_an_epoch_cut_short_ends_with_the_training(monkeypatch):
    monkeypatch.setattr(train, "make_plan", fixed_plan(6, 1.0))
    history = trained(SMALL.model_copy(update={"learning_rate": 0.0})).history
    assert [row.epoch for row in history] == [1, 2]
    assert 0.6 < history[1].train_loss / history[0].train_loss < 1.6  # a mean over the steps taken, not over four
    assert history[1].learning_rate == 0


@pytest.mark.parametrize(("chunk", "unknown"), [(2, 1), (4, 2)], ids=["in an epoch", "between two"])
def test_a_resumed_epoch_does_not_correct_the_costs(tmp_path, monkeypatch, chunk, unknown):
    monkeypatch.setattr(loop, "CHUNK", chunk)
    monkeypatch.setattr(train, "make_plan", fixed_plan(16, 1.0))
    costs: list[float] = []
    monkeypatch.setattr(budget, "affordable", lambda known, *_: costs.append(known.epochs[0]) or 16)
    with pytest.raises(train.Interrupted):
        trained(BUDGETED, tmp_path / "checkpoint.npz", should_stop=lambda: True)
    trained(BUDGETED, tmp_path / "checkpoint.npz")
    assert costs[:unknown] == [1.0] * unknown
    assert 1.0 not in costs[unknown:]


def test_a_resumed_epoch_counts_the_seconds_before_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 2)
    monkeypatch.setattr(train, "make_plan", fixed_plan(8, 1.0))
    now = 0.0

    def after_a_minute() -> bool:
        nonlocal now
        now += 60
        return True

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now, process_time=time.process_time))
    with pytest.raises(train.Interrupted):
        trained(checkpoint_path=tmp_path / "checkpoint.npz", should_stop=after_a_minute)
    assert [row.seconds for row in trained(checkpoint_path=tmp_path / "checkpoint.npz").history] == [60, 0]


def test_several_workers_take_one_step_at_a_time(monkeypatch):
    counts, graph = set(), steps.steps_in_graph

    def counting(*arguments):
        run = graph(*arguments)
        return lambda stream, count, size: counts.add(int(count)) or run(stream, count, size)

    monkeypatch.setattr(steps, "steps_in_graph", counting)
    monkeypatch.setattr(distribution, "workers", lambda: 2)
    monkeypatch.setattr(train, "make_plan", fixed_plan(4, 0.01))
    trained()
    assert counts == {1}


def test_the_time_left_counts_the_larger_images_to_come(monkeypatch):
    monkeypatch.setattr(train, "make_plan", fixed_plan(16, 1.0, 3.0))
    ratios: list[float] = []
    trained(
        SMALL.model_copy(update={"epochs": 4, "input_sizes": [32, 40]}),
        on_epoch=lambda row, epochs, left: ratios.append(left / row.seconds),
    )
    assert ratios == pytest.approx([7, 6, 1, 0])
