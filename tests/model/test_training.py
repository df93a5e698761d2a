import dataclasses
import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from mobilenet_pipeline import budget, checkpoint, config, dataset, distribution, mobilenet, optimizer, steps, training
from mobilenet_pipeline.stages import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    config.load_recipe("digits", ROOT / "params.yaml")
    .candidate("scratch")
    .model_copy(update={"strides": "stock", "epochs": 2, "batch_size": 16, "warmup": 0.25, "learning_rate": 0.05})
)


AUGMENTED = SMALL.model_copy(update={"flip": "random", "shift": 2, "cutout": 6})


def coloured(count: int) -> training.Images:
    """Images whose class is their brightness: learnt in a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 100, (count, 32, 32, 3)) + labels[:, None, None, None] * 120
    return training.Images(pixels.astype(np.uint8), labels.astype(np.uint8))


def trained(candidate: config.Candidate = SMALL, **kwargs: object) -> training.Trained:
    strategy = tf.distribute.get_strategy()
    return training.train(candidate, coloured(64), coloured(32), 2, strategy, **kwargs)


def test_a_few_real_steps_lower_the_loss():
    history = trained(SMALL.model_copy(update={"epochs": 4})).history
    assert history[-1].train_loss < 0.7 * history[0].train_loss


def test_the_same_seed_gives_the_same_weights():
    first, second = trained().model.get_weights(), trained().model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_other_weights():
    other = trained(SMALL.model_copy(update={"seed": 1})).model.get_weights()
    assert not np.allclose(trained().model.get_weights()[0], other[0])


def test_every_epoch_is_reported_as_it_ends():
    seen = []
    trained(on_epoch=lambda row, epochs, left: seen.append((row.epoch, epochs)))
    assert seen == [(1, 2), (2, 2)]


def test_the_trained_model_holds_keras_s_own_layers_only(tmp_path):
    model = trained().model
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={})
    images = coloured(4).pixels
    assert np.array_equal(np.asarray(loaded(images)), np.asarray(model(images)))


def test_a_loss_that_is_no_number_stops_training_and_names_the_step():
    with pytest.raises(training.DivergedError, match=r"the loss is (nan|inf) at step \d+: training stopped"):
        trained(SMALL.model_copy(update={"learning_rate": 1e38, "warmup": 1.0}))


def test_a_validation_loss_that_is_no_number_stops_training_too():
    # One step an epoch: the first loss is taken before the weights have grown beyond all numbers.
    wild = SMALL.model_copy(update={"learning_rate": 1e38, "warmup": 1.0, "epochs": 1, "batch_size": 64})
    with pytest.raises(training.DivergedError, match=r"the validation loss is (nan|inf) at step 1: training stopped"):
        trained(wild)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="lower batch_size"):
        trained(SMALL.model_copy(update={"batch_size": 65}))


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 10), (0.5, 4), (3.4, 1)])
def test_someone_who_asks_a_training_to_end_waits_two_seconds_or_one_step(seconds, steps):
    assert training.steps_at_once(seconds) == steps


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    schedule = training.OneCycle()
    schedule.set(0.2, 0.25, 40)
    rates = [float(schedule(step)) for step in range(40)]
    assert max(rates) == rates[9] == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_an_epoch_holds_every_image_at_most_once():
    images = training.Images(
        np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8), np.arange(50)
    )
    plain = SMALL.model_copy(update={"epochs": 1, "shift": 0})
    batches = list(dataset.training_batches(images.pixels, images.labels, plain, 16, 1))
    seen = np.concatenate([labels for _, labels in batches])
    assert len(batches) == 3
    assert len(set(seen.tolist())) == 48


def test_images_stay_with_their_labels():
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    for pixels, labels in dataset.training_batches(images, np.arange(50), SMALL, 16, 2):
        assert np.array_equal(pixels[:, 0, 0, 0], labels)


def test_a_stream_resumed_at_a_step_is_the_same_stream():
    data = coloured(40)
    whole = [x.numpy() for x, _ in dataset.training_batches(data.pixels, data.labels, AUGMENTED, 16, 2)]
    later = [x.numpy() for x, _ in dataset.training_batches(data.pixels, data.labels, AUGMENTED, 16, 2, first_step=3)]
    assert len(whole) == 4
    assert len(later) == 1
    assert np.array_equal(whole[3], later[0])


def test_the_pieces_of_a_batch_are_the_batch_whoever_works_on_them():
    data = coloured(40)

    def stream(*shares: dataset.Share) -> list[np.ndarray]:
        streams = [dataset.training_batches(data.pixels, data.labels, AUGMENTED, 16, 1, share) for share in shares]
        return [x.numpy() for stream in streams for x, _ in stream]

    (whole, _) = stream(dataset.Share())
    both = stream(dataset.Share(0, 2, 2))
    apart = stream(dataset.Share(0, 1, 2), dataset.Share(1, 1, 2))
    assert np.array_equal(np.concatenate(both[:2]), whole)
    assert np.array_equal(np.concatenate([apart[0], apart[2]]), whole)


def test_a_flipped_image_is_its_mirror_image():
    images = coloured(2).pixels
    flipped = dataset.flip(tf.constant(images), tf.constant([True, False])).numpy()
    assert np.array_equal(flipped, np.stack([images[0, :, ::-1], images[1]]))


def test_alternating_flips_show_every_image_one_way_then_the_other():
    data = training.Images(coloured(32).pixels, np.arange(32))
    candidate = SMALL.model_copy(update={"flip": "alternating", "shift": 0})
    seen: dict[int, list[bool]] = {}
    for pixels, labels in dataset.training_batches(data.pixels, data.labels, candidate, 16, 2):
        for image, label in zip(pixels.numpy(), labels.numpy(), strict=True):
            seen.setdefault(int(label), []).append(not np.array_equal(image, data.pixels[label]))
    assert all(sorted(ways) == [False, True] for ways in seen.values())
    assert 4 < sum(ways[0] for ways in seen.values()) < 28


def test_a_shifted_image_is_a_window_of_its_reflected_padding():
    image = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.int32)
    moved = dataset.shift(tf.constant(image), tf.constant([[0, 3]]), 2).numpy()[0]
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    assert np.array_equal(moved, padded[0:32, 3:35])


def test_a_cut_out_square_is_grey_and_ends_at_the_border():
    image = np.zeros((2, 32, 32, 3), np.uint8)
    cut = dataset.cut_out(tf.constant(image), tf.constant([[16, 16], [0, 32]]), 8).numpy()
    expected = image.copy()
    expected[0, 12:20, 12:20] = 127
    expected[1, 0:4, 28:32] = 127
    assert np.array_equal(cut, expected)


def test_a_training_that_was_asked_to_end_goes_on_where_it_was_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 3)
    monkeypatch.setattr(training, "plan", lambda *_: (8, budget.Costs([1.0, 1.0], 0.0)))  # of four steps an epoch
    candidate = AUGMENTED.model_copy(update={"input_sizes": [32, 40]})
    # Chunks of 3, 1, 3 and 1 steps; after the second, the only batch of validation images.
    asked = iter([False, False, False, True])
    with pytest.raises(training.Interrupted):
        trained(candidate, saved=tmp_path / "checkpoint.npz", asked_to_end=lambda: next(asked))
    said: list[str] = []
    resumed = trained(candidate, saved=tmp_path / "checkpoint.npz", say=said.append)
    assert said[-1] == "going on after step 7 of 8"
    whole = trained(candidate).model.get_weights()
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(resumed.model.get_weights(), whole, strict=True))


def test_a_training_that_was_asked_to_end_while_it_validates_keeps_its_epoch_and_validates_when_it_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "plan", lambda *_: (8, budget.Costs([1.0], 0.0)))  # of four steps an epoch
    asked = iter([False, True])
    with pytest.raises(training.Interrupted):
        trained(saved=tmp_path / "checkpoint.npz", asked_to_end=lambda: next(asked))
    said: list[str] = []
    resumed = trained(saved=tmp_path / "checkpoint.npz", say=said.append)
    assert said[-1] == "going on after step 4 of 8"
    whole = trained()
    for name in ("validation_loss", "train_loss"):
        found, expected = ([getattr(row, name) for row in one.history] for one in (resumed, whole))
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_training_that_is_asked_to_end_while_it_times_its_steps_ends_before_the_first(tmp_path):
    asked = iter([False, True])
    said: list[str] = []
    with pytest.raises(training.Interrupted) as raised:
        trained(saved=tmp_path / "checkpoint.npz", asked_to_end=lambda: next(asked), say=said.append)
    assert not raised.value.saved
    assert said == []
    assert not (tmp_path / "checkpoint.npz").exists()


def test_an_input_size_ends_at_the_same_step_however_many_steps_are_taken_at_once(monkeypatch):
    growing = SMALL.model_copy(update={"input_sizes": [32, 40]})
    monkeypatch.setattr(training, "plan", lambda *_: (6, budget.Costs([1.0, 1.0], 0.0)))  # of four steps an epoch
    weights = []
    for chunk in (1, 4):
        monkeypatch.setattr(training, "CHUNK", chunk)
        weights.append(trained(growing).model.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


def test_a_state_that_other_code_has_left_is_not_taken_up(tmp_path, monkeypatch, capsys):
    trained(saved=tmp_path / "checkpoint.npz")
    monkeypatch.setattr(training, "_code", lambda: "of yesterday")
    said: list[str] = []
    trained(saved=tmp_path / "checkpoint.npz", say=said.append)
    assert not any("going on" in line for line in said)
    assert "is of other code, knobs, data" in capsys.readouterr().out


def test_the_state_of_another_training_is_not_taken_up_and_that_is_said(tmp_path, capsys):
    trained(saved=tmp_path / "checkpoint.npz")
    said: list[str] = []
    trained(SMALL.model_copy(update={"learning_rate": 0.04}), saved=tmp_path / "checkpoint.npz", say=said.append)
    assert not any("going on" in line for line in said)
    assert "the training starts afresh" in capsys.readouterr().out


def test_a_training_goes_on_once_its_code_and_its_state_are_put_back(tmp_path, monkeypatch):
    saved, asked = tmp_path / "checkpoint.npz", iter([False] * 7 + [True])
    with pytest.raises(training.Interrupted):
        trained(saved=saved, asked_to_end=lambda: next(asked))
    with monkeypatch.context() as changed:
        changed.setattr(training, "_code", lambda: "of tomorrow")
        trained(saved=saved)
    said: list[str] = []
    saved.with_name("checkpoint.other.npz").replace(saved)
    trained(saved=saved, say=said.append)
    assert any("going on" in line for line in said)


def test_workers_that_differ_leave_the_state_where_it_is(tmp_path, monkeypatch):
    saved = tmp_path / "checkpoint.npz"
    trained(saved=saved)
    before = saved.read_bytes()
    monkeypatch.setattr(training, "_code", lambda: "of this worker alone")
    monkeypatch.setattr(distribution, "same_everywhere", lambda strategy, facts: False)
    with pytest.raises(ValueError, match="the workers of TF_CONFIG differ"):
        trained(saved=saved)
    assert saved.read_bytes() == before


def test_a_damaged_state_is_told_and_the_training_starts_afresh(tmp_path, capsys):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK damaged")
    assert len(trained(saved=tmp_path / "checkpoint.npz").history) == 2
    assert "checkpoint.npz cannot be read" in capsys.readouterr().out


def test_a_state_whose_disk_does_not_let_it_be_read_is_neither_lost_nor_replaced(tmp_path):
    (tmp_path / "checkpoint.npz").mkdir()  # permissions would not stop root
    with pytest.raises(OSError, match=r"make it readable, or delete it to start afresh: .*checkpoint\.npz"):
        trained(saved=tmp_path / "checkpoint.npz")


def test_where_the_disk_is_full_the_state_before_stays_and_the_file_is_named(tmp_path, monkeypatch):
    path, written = tmp_path / "checkpoint.npz", np.savez
    state = checkpoint.State(4, 8, budget.Costs([1.0], 0.0), {"weight_0": np.ones(3)}, (0.0, 0.0), 1.0, [], 2.0)
    checkpoint.save(path, {}, state)

    def filling(file, **arrays):
        written(file, **arrays)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", filling)
    with pytest.raises(OSError, match=r"No space left on device; run again once it can be written.*checkpoint\.npz"):
        checkpoint.save(path, {}, dataclasses.replace(state, step=5))
    assert checkpoint.load(path, {}).step == 4
    assert os.listdir(tmp_path) == ["checkpoint.npz"]


def test_what_a_process_left_that_was_killed_while_it_saved_is_removed_by_the_next(tmp_path):
    (tmp_path / ".checkpoint.npz.4711").write_bytes(b"half")
    trained(saved=tmp_path / "checkpoint.npz")
    assert os.listdir(tmp_path) == ["checkpoint.npz"]


def test_a_training_of_given_cpu_minutes_trains_as_long_as_fits_and_says_so():
    candidate = SMALL.model_copy(update={"epochs": None, "cpu_minutes": (time.process_time() + 25) / 60})
    said: list[str] = []
    result = trained(candidate, say=said.append)
    assert float(said[0].split(" epochs will take ")[0]) > 2
    assert len(result.history) > 2
    assert result.history[-1].learning_rate == pytest.approx(0, abs=1e-3)
    assert candidate.cpu_minutes * 60 - 12 < result.cpu_seconds < candidate.cpu_minutes * 60


def test_a_training_that_takes_more_time_than_was_measured_is_cut_short_to_keep_its_budget(monkeypatch):
    candidate = SMALL.model_copy(update={"epochs": None, "cpu_minutes": (time.process_time() + 20) / 60})
    measured = training.plan

    def hopeful(*arguments):  # measured, for that also builds the graphs, then told as nearly nothing
        measured(*arguments)
        return 40_000, budget.Costs([0.01], 0.01)

    monkeypatch.setattr(training, "plan", hopeful)
    result = trained(candidate)
    assert 2 < len(result.history) < 10_000
    assert result.history[-1].learning_rate == pytest.approx(0, abs=1e-3)
    assert result.cpu_seconds < candidate.cpu_minutes * 60


@pytest.mark.parametrize(("chunk", "unknown"), [(2, 1), (4, 2)], ids=["in an epoch", "between two"])
def test_the_first_epoch_after_an_interruption_says_nothing_of_what_epochs_cost(tmp_path, monkeypatch, chunk, unknown):
    monkeypatch.setattr(training, "CHUNK", chunk)
    monkeypatch.setattr(training, "plan", lambda *_: (16, budget.Costs([1.0], 0.0)))  # of four steps an epoch
    costs: list[float] = []
    monkeypatch.setattr(budget, "affordable", lambda known, *_: costs.append(known.epochs[0]) or 16)
    candidate = SMALL.model_copy(update={"epochs": None, "cpu_minutes": 1e3})
    asked = iter([True])
    with pytest.raises(training.Interrupted):
        trained(candidate, saved=tmp_path / "checkpoint.npz", asked_to_end=lambda: next(asked))
    trained(candidate, saved=tmp_path / "checkpoint.npz")
    assert costs[:unknown] == [1.0] * unknown
    assert 1.0 not in costs[unknown:]


def test_an_epoch_that_was_resumed_in_between_took_the_seconds_before_that_too(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 2)
    monkeypatch.setattr(training, "plan", lambda *_: (8, budget.Costs([1.0], 0.0)))  # of four steps an epoch
    now = 0.0

    def after_a_minute() -> bool:
        nonlocal now
        now += 60
        return True

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now, process_time=time.process_time))
    with pytest.raises(training.Interrupted):
        trained(saved=tmp_path / "checkpoint.npz", asked_to_end=after_a_minute)
    assert [row.seconds for row in trained(saved=tmp_path / "checkpoint.npz").history] == [60, 0]


def test_several_workers_take_one_step_at_a_time_whatever_each_has_measured(monkeypatch):
    counts, graph = set(), steps.steps_in_graph

    def counting(*arguments):
        run = graph(*arguments)
        return lambda stream, count, size: counts.add(int(count)) or run(stream, count, size)

    monkeypatch.setattr(steps, "steps_in_graph", counting)
    monkeypatch.setattr(distribution, "workers", lambda: 2)
    monkeypatch.setattr(training, "plan", lambda *_: (4, budget.Costs([0.01], 0.0)))
    trained()
    assert counts == {1}


def test_an_epoch_that_is_cut_short_ends_with_the_training(monkeypatch):
    monkeypatch.setattr(training, "plan", lambda *_: (6, budget.Costs([1.0], 0.0)))  # of four steps an epoch
    history = trained(SMALL.model_copy(update={"learning_rate": 0.0})).history
    assert [row.epoch for row in history] == [1, 2]
    assert 0.6 < history[1].train_loss / history[0].train_loss < 1.6  # a mean over the steps taken, not over four
    assert history[1].learning_rate == 0


def test_input_sizes_are_taken_in_turn_and_validated_at_the_size_of_their_epoch(monkeypatch):
    sizes: list[int] = []
    enlarge = mobilenet.enlarge
    monkeypatch.setattr(mobilenet, "enlarge", lambda x, c, size: sizes.append(size) or enlarge(x, c, size))
    monkeypatch.setattr(training, "plan", lambda *_: (8, budget.Costs([1.0, 1.0], 0.0)))
    result = trained(SMALL.model_copy(update={"input_sizes": [32, 48]}))
    assert sizes == [32, 32, 48, 48, 48]  # a graph to train and one to validate at each, and the finished model
    assert result.model.get_layer("conv1").output.shape[1] == 24


def test_frozen_blocks_keep_their_weights_and_the_others_learn():
    frozen, free = (trained(SMALL.model_copy(update={"frozen": count})).model for count in (3, 0))
    keras.utils.set_random_seed(SMALL.seed)
    fresh = mobilenet.build_trained(SMALL, 2)
    for name in ("conv1", "conv1_bn", "conv_dw_2", "conv_pw_2_bn"):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(frozen.get_layer(name).get_weights(), fresh.get_layer(name).get_weights(), strict=True)
        )
    for name in ("conv_dw_3", "conv_pw_3_bn"):
        assert not np.array_equal(frozen.get_layer(name).get_weights()[0], fresh.get_layer(name).get_weights()[0])
    assert not np.array_equal(free.get_layer("conv1").kernel, fresh.get_layer("conv1").kernel)


def test_cpu_minutes_that_do_not_suffice_for_an_epoch_are_refused():
    with pytest.raises(ValueError, match=r"cpu_minutes is 1e-06, .* raise it to [\d.]+ at least, or lower alpha"):
        trained(SMALL.model_copy(update={"epochs": None, "cpu_minutes": 1e-6}))


@pytest.mark.parametrize("precision", ["pointwise_bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_layers_that_compute_in_short_numbers_learn(precision):
    # Twice as long as in float32: the first steps of float16 are left out until its scale of the loss is found.
    result = trained(SMALL.model_copy(update={"epochs": 8, "precision": precision}))
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert {str(variable.dtype) for variable in result.model.variables if "seed" not in variable.path} == {"float32"}


def test_a_step_whose_float16_gradients_overflow_is_left_out_and_lowers_the_scale():
    candidate = SMALL.model_copy(update={"precision": "mixed_float16"})
    model = mobilenet.build_trained(candidate, 2)
    scaled = optimizer.optimizer_of(candidate, 0.05)
    scaled.build(model.trainable_variables)
    scaled.dynamic_scale.assign(2.0**40)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    images = coloured(16)
    run = steps.steps_in_graph(tf.distribute.get_strategy(), model, scaled, candidate, 16)
    stream = iter(dataset.training_batches(images.pixels, images.labels, candidate, 16, 1))
    run(stream, tf.constant(1), 32)
    assert float(scaled.dynamic_scale) == 2.0**39
    assert all(np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True))


def test_without_a_gpu_the_strategy_is_the_default_one():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU: MirroredStrategy is chosen")
    assert distribution.choose() is tf.distribute.get_strategy()


def test_an_epoch_is_a_line_with_a_bar_and_the_time_that_is_left():
    row = training.Epoch(2, 0.1, 1.5, 0.5, 1.25, 0.625, 10.0)
    line = "██████████░░░░░░░░░░ epoch 2/4 loss 1.500 accuracy 0.500 validation 1.250 0.625 10.0 s, 1:20 left"
    assert train.progress(row, 4, 80.9) == line


def test_the_time_that_is_left_counts_the_larger_images_to_come(monkeypatch):
    monkeypatch.setattr(training, "plan", lambda *_: (16, budget.Costs([1.0, 3.0], 0.0)))  # of four steps an epoch
    ratios: list[float] = []
    trained(
        SMALL.model_copy(update={"epochs": 4, "input_sizes": [32, 40]}),
        on_epoch=lambda row, epochs, left: ratios.append(left / row.seconds),
    )
    assert ratios == pytest.approx([7, 6, 1, 0])


def test_the_saved_model_has_the_temperature_with_the_lowest_validation_loss():
    images = coloured(32)
    result = trained(SMALL.model_copy(update={"epochs": 4}))
    probabilities = np.asarray(result.model(images.pixels))
    loss = -np.log(probabilities[np.arange(32), images.labels]).mean()
    assert result.temperature != 1
    assert loss < result.history[-1].validation_loss  # which is of before
