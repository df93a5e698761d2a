from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mobilenet_pipeline import config
from mobilenet_pipeline.models import anatomy, costs, network
from mobilenet_pipeline.models.architectures import mobilenet
from mobilenet_pipeline.system import environment

ROOT = Path(__file__).resolve().parents[2]
DIGITS = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
SEED = config.load_recipe("seed", ROOT / "params.yaml").candidate("scratch")
SHAPE = (32, 32, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)


def randomised(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(1)
    model.set_weights([np.abs(rng.normal(0.5, 0.2, w.shape)) if w.ndim == 1 else w for w in model.get_weights()])
    return model


def test_features_equal_those_of_keras_with_the_same_weights():
    theirs = randomised(keras.applications.MobileNet(SHAPE, alpha=0.25, include_top=False, weights=None))
    ours = mobilenet.backbone(0.25, anatomy.STRIDES["stock"])
    ours.set_weights(theirs.get_weights())
    x = IMAGES / np.float32(127.5) - 1
    assert np.abs(np.asarray(ours(x)) - np.asarray(theirs(x))).max() <= 1e-5


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_features_equal_those_of_keras_after_resizing(size):
    theirs = keras.applications.MobileNet((*size, 3), alpha=0.25, include_top=False, weights=None)
    candidate = SEED.model_copy(update={"alpha": 0.25, "input_sizes": [size[0]], "pixel_range": "signed"})
    ours = network.build(candidate, SHAPE, 10)
    for layer in theirs.layers:
        if layer.weights:
            ours.get_layer(layer.name).set_weights(layer.get_weights())
    features = keras.Model(ours.input, ours.get_layer("conv_pw_13_relu").output)
    x = keras.ops.image.resize(IMAGES / np.float32(127.5) - 1, size)
    assert np.abs(np.asarray(features(IMAGES)) - np.asarray(theirs(x))).max() <= 1e-5


def test_probabilities_of_an_image_sum_to_one():
    probabilities = np.asarray(network.build(DIGITS, SHAPE, 10)(IMAGES))
    assert probabilities.shape == (4, 10)
    assert probabilities.sum(-1) == pytest.approx(1, abs=1e-5)


def test_it_has_as_many_parameters_as_its_anatomy():
    model = network.build(DIGITS, SHAPE, 10)
    assert model.count_params() == anatomy.parameters(costs.layers(DIGITS, 10))


def test_images_of_another_shape_are_classified_too():
    model = network.build(DIGITS, (48, 40, 3), 7)
    assert model.input_shape == (None, 48, 40, 3)
    assert np.asarray(model(np.zeros((2, 48, 40, 3), np.uint8))).shape == (2, 7)


def test_the_image_shape_does_not_change_the_weights():
    shapes = [[w.shape for w in network.build(DIGITS, shape, 10).weights] for shape in (SHAPE, (48, 48, 3))]
    assert shapes[0] == shapes[1]


def test_standard_pixels_do_not_change_with_brightness_and_contrast():
    image = np.random.default_rng(5).integers(60, 180, (1, *SHAPE), np.uint8)
    darker = (image // 2 * 1.0 - 20).astype(np.uint8)

    def change(pixel_range: str) -> float:
        candidate = DIGITS.model_copy(update={"pixel_range": pixel_range})
        first, second = (np.asarray(network.resize(tf.constant(pixels), candidate, 32)) for pixels in (image, darker))
        return float(np.abs(first - second).max())

    assert change("standard") < 0.05  # bytes are whole numbers
    assert change("signed") > 0.5


def test_standard_pixels_of_an_image_of_one_colour_are_zero():
    candidate = DIGITS.model_copy(update={"pixel_range": "standard"})
    assert not np.asarray(network.resize(tf.fill((1, *SHAPE), tf.constant(200, tf.uint8)), candidate, 32)).any()


def test_a_wrong_number_of_strides_is_refused():
    with pytest.raises(ValueError, match="14 strides"):
        mobilenet.backbone(0.25, (1, 2))


def test_bundled_weights_change_every_layer_but_the_head():
    candidate = DIGITS.model_copy(update={"weights": "bundled"})
    model = network.build(candidate, SHAPE, 10)
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    assert "CIFAR-10" in network.load_pretrained(model, candidate)
    same = [name for name, old in before.items() if np.array_equal(old[0], model.get_layer(name).get_weights()[0])]
    assert same == ["logits"]


def test_bundled_weights_separate_digits_better_than_random_ones():
    from sklearn.datasets import load_digits

    digits = load_digits()
    enlarged = (digits.images[:600] * 255 / 16).repeat(4, 1).repeat(4, 2)
    pixels, labels = np.repeat(enlarged[..., None], 3, -1).astype(np.uint8), digits.target[:600]
    keras.utils.set_random_seed(0)
    model = network.build(DIGITS, SHAPE, 10)
    seen = keras.Model(model.input, model.get_layer("pool").output)

    def separation() -> float:
        found = np.asarray(seen(pixels))
        centres = np.stack([found[:300][labels[:300] == digit].mean(0) for digit in range(10)])
        nearest = np.linalg.norm(found[300:, None] - centres, axis=-1).argmin(1)
        return float(np.mean(nearest == labels[300:]))

    fresh = separation()
    network.load_pretrained(model, DIGITS.model_copy(update={"weights": "bundled"}))
    assert separation() > fresh + 0.1


def test_bundled_weights_of_another_width_are_refused():
    candidate = DIGITS.model_copy(update={"weights": "bundled", "alpha": 0.5})
    with pytest.raises(ValueError, match=r"set alpha: 0\.25"):
        network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def test_a_weights_folder_without_the_file_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    candidate = SEED.model_copy(update={"weights": "imagenet"})
    with pytest.raises(ValueError, match=r"no mobilenet_1_0_224_tf_no_top\.h5 or .* choose another alpha"):
        network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def test_imagenet_weights_load_from_the_folder(monkeypatch):
    import os

    if "IMAGENET_WEIGHTS_DIR" not in os.environ:
        pytest.skip("IMAGENET_WEIGHTS_DIR is not set")
    candidate = SEED.model_copy(update={"weights": "imagenet", "alpha": 0.25})
    assert "ImageNet" in network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def keras_s_own_file(path: Path, model: keras.Model) -> None:
    """Write the old format, which Keras downloads but does not write by itself."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mobilenet_2_5_224_imagenet_no_top.weights.h5", lambda path, model: model.save_weights(path)),
        ("mobilenet_2_5_224_tf_no_top.h5", keras_s_own_file),
    ],
)
def test_imagenet_weights_load_into_our_layers_by_name(tmp_path, monkeypatch, name, write):
    theirs = keras.applications.MobileNet((224, 224, 3), alpha=0.25, include_top=False, weights=None)
    write(tmp_path / name, theirs)
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    candidate = SEED.model_copy(update={"weights": "imagenet", "alpha": 0.25})
    ours = network.build(candidate, SHAPE, 10)
    network.load_pretrained(ours, candidate)
    assert np.array_equal(ours.get_layer("conv_pw_9").get_weights()[0], theirs.get_layer("conv_pw_9").get_weights()[0])


def test_a_file_without_imagenet_weights_is_named(tmp_path, monkeypatch):
    (tmp_path / "mobilenet_2_5_224_tf_no_top.h5").write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    candidate = SEED.model_copy(update={"weights": "imagenet", "alpha": 0.25})
    with pytest.raises(ValueError, match=r"tf_no_top\.h5 does not hold MobileNet v1's ImageNet weights"):
        network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def test_a_failed_download_names_the_way_without_a_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure on https://…: None -- [Errno -2] Name or service not known")

    monkeypatch.delenv("IMAGENET_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(keras.utils, "get_file", refuse)
    candidate = SEED.model_copy(update={"weights": "imagenet"})
    with pytest.raises(ConnectionError, match=r"mobilenet_1_0_224_tf_no_top\.h5 into a folder .* IMAGENET_WEIGHTS_DIR"):
        network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def test_a_truncated_download_in_the_user_s_keras_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv(environment.KERAS_DOWNLOADS, str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mobilenet_1_0_224_tf_no_top.h5").write_bytes(b"half a file")
    candidate = SEED.model_copy(update={"weights": "imagenet"})
    with pytest.raises(ValueError, match=rf"{tmp_path}/models/mobilenet_1_0_224_tf_no_top\.h5 does not hold .* delete"):
        network.load_pretrained(network.build(candidate, SHAPE, 10), candidate)


def test_an_input_size_too_small_for_the_strides_is_refused():
    tiny = DIGITS.model_copy(update={"strides": "stem-1", "input_sizes": [15, 32]})
    with pytest.raises(ValueError, match=r"input_sizes has 15, which is too small for `strides: stem-1`; .* 16"):
        network.build_trained(tiny, 10)


def test_the_smallest_input_size_ends_as_one_pixel():
    tiny = DIGITS.model_copy(update={"strides": "stem-1", "input_sizes": [16]})
    assert network.build_trained(tiny, 10)(np.zeros((1, 16, 16, 3))).shape == (1, 10)


@pytest.mark.parametrize("frozen", [0, 1, 4])
def test_frozen_blocks_give_the_features_of_the_model(frozen: int) -> None:
    candidate = DIGITS.model_copy(update={"frozen": frozen, "weights": "bundled"})
    model = network.build_trained(candidate, 10)
    network.load_pretrained(model, candidate)
    blocks, rest = network.architecture_of(candidate).split(model, candidate)
    pixels = tf.constant(np.random.default_rng(0).normal(0, 1, (4, 32, 32, 3)), tf.float32)
    assert np.allclose(rest(blocks(pixels), training=False), model(pixels, training=False), atol=1e-3)
    assert len(rest.trainable_weights) == len(model.trainable_weights)
