from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mobilenet_pipeline import config, dataset, distribution, mobilenet, training

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    config.load_recipe("digits", ROOT / "params.yaml")
    .candidate("scratch")
    .model_copy(update={"strides": "stock", "epochs": 2, "batch_size": 16, "warmup": 0.25, "learning_rate": 0.05})
)


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
    trained(on_epoch=seen.append)
    assert [row.epoch for row in seen] == [1, 2]


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
    with pytest.raises(
        training.DivergedError, match=r"the validation loss is (nan|inf) after step 1: training stopped"
    ):
        trained(wild)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="lower batch_size"):
        trained(SMALL.model_copy(update={"batch_size": 65}))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [float(training.OneCycle(0.2, 10, 40)(step)) for step in range(40)]
    assert max(rates) == rates[9] == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_weight_decay_applies_to_stem_pointwise_and_dense_kernels_only():
    variables = mobilenet.build(SMALL, 10).trainable_variables
    chosen = [v.path for v, flag in zip(variables, training.decayed(variables), strict=True) if flag]
    assert len(chosen) == 1 + 13 + 1
    assert not any("dw" in path or "bn" in path or "bias" in path for path in chosen)


def test_an_epoch_holds_every_image_at_most_once():
    images = training.Images(
        np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8), np.arange(50)
    )
    plain = SMALL.model_copy(update={"epochs": 1, "shift": 0})
    batches = list(dataset.training_batches(images.pixels, images.labels, plain, 16))
    seen = np.concatenate([labels for _, labels in batches])
    assert len(batches) == 3
    assert len(set(seen.tolist())) == 48


def test_images_stay_with_their_labels():
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    for pixels, labels in dataset.training_batches(images, np.arange(50), SMALL, 16):
        assert np.array_equal(pixels[:, 0, 0, 0], labels)


def test_a_flipped_image_is_itself_or_its_mirror_image():
    images = tf.constant(coloured(64).pixels)
    flipped = dataset.flip(images, tf.constant([0, 1])).numpy()
    mirrored = [np.array_equal(out, image[:, ::-1]) for out, image in zip(flipped, images.numpy(), strict=True)]
    same = [np.array_equal(out, image) for out, image in zip(flipped, images.numpy(), strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_shifted_image_is_a_window_of_its_reflected_padding():
    image = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.int32)
    moved = dataset.shift(tf.constant(image), tf.constant([3, 4]), 2).numpy()[0]
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = [padded[i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
    assert any(np.array_equal(moved, window) for window in windows)


def test_without_a_gpu_the_strategy_is_the_default_one():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU: MirroredStrategy is chosen")
    assert distribution.choose() is tf.distribute.get_strategy()
