"""Every architecture keeps the interface that training, export and evaluation rely on."""

from pathlib import Path

import keras
import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation import export
from mobilenet_pipeline.models import initial, network
from mobilenet_pipeline.models.architecture import NORM_MOMENTUM

ROOT = Path(__file__).resolve().parents[2]
DIGITS = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
OTHERS = [name for name in config.ARCHITECTURES if name != "mobilenet"]


def candidate(architecture: str, **changes: object) -> config.Candidate:
    settings = {"architecture": architecture, "strides": "stock", "alpha": 0.75, "input_sizes": [64]}
    return config.Candidate.model_validate(DIGITS.model_dump() | settings | changes)


class Built:
    """The served and the trained model of an architecture, with the weights that follow from seed 1."""

    def __init__(self, architecture: str) -> None:
        self.candidate = candidate(architecture, frozen=2)
        self.architecture = network.architecture_of(self.candidate)
        self.served = network.build(self.candidate, (32, 32, 3), 10)
        self.trained = network.build_trained(self.candidate, 10)
        initial.draw(self.trained, 1)
        self.served.set_weights(self.trained.get_weights())


@pytest.fixture(scope="module", params=config.ARCHITECTURES)
def built(request: pytest.FixtureRequest) -> Built:
    return Built(request.param)


def test_the_served_model_answers_like_the_trained_one(built):
    logits = built.trained(network.resize(keras.ops.convert_to_tensor(IMAGES), built.candidate, 64))
    assert np.allclose(built.served(IMAGES), keras.ops.softmax(logits), atol=1e-5)


def test_a_saved_model_loads_without_code_of_the_project(built, tmp_path):
    built.served.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert np.array_equal(loaded(IMAGES), built.served(IMAGES))


def test_the_first_blocks_are_frozen_and_the_last_one_is_known(built):
    blocks = {layer.name: built.architecture.block(layer.name) for layer in built.trained.layers if layer.weights}
    blocks.pop("logits")
    frozen = {name for name in blocks if not built.trained.get_layer(name).trainable}
    assert frozen == {name for name, number in blocks.items() if number < 2}
    assert {*blocks.values()} == {*range(config.ARCHITECTURES[built.candidate.architecture].blocks + 1)}


def test_moving_moments_follow_within_a_few_dozen_steps(built):
    norms = [layer for layer in built.trained.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {NORM_MOMENTUM}


def test_no_layer_draws_random_numbers_that_a_checkpoint_lacks(built):
    assert [layer.name for layer in built.trained.layers if getattr(layer, "seed_generator", None)] == []


def test_initial_weights_follow_from_the_seed(built):
    before = built.trained.get_weights()
    initial.draw(built.trained, 2)
    kernels = [not np.array_equal(a, b) for a, b in zip(before, built.trained.get_weights(), strict=True) if a.ndim > 1]
    initial.draw(built.trained, 1)
    assert all(kernels)
    assert all(np.array_equal(a, b) for a, b in zip(before, built.trained.get_weights(), strict=True))


@pytest.mark.parametrize("architecture", OTHERS)
def test_imagenet_weights_load_by_name(architecture, tmp_path, monkeypatch):
    chosen = candidate(architecture, weights="imagenet")
    ours = network.architecture_of(chosen)
    theirs = ours.application(input_shape=(224, 224, 3), alpha=0.75, include_top=False, weights=None)
    write_as_keras_does(tmp_path / ours.names(0.75)[0], theirs)
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    model = network.build_trained(chosen, 10)
    assert ours.names(0.75)[0] in network.load_pretrained(model, chosen)
    stem = theirs.layers[1].name
    assert np.array_equal(model.get_layer(stem).get_weights()[0], theirs.get_layer(stem).get_weights()[0])


def write_as_keras_does(path: Path, model: keras.Model) -> None:
    """Write the old format, which Keras downloads but does not write by itself."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def test_squeeze_and_excite_and_hard_swish_become_int8(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = network.build(candidate("mobilenet_v3_small", input_sizes=[32]), (32, 32, 3), 10)
    facts = export.export(model, tmp_path / "model.tflite", "int8", IMAGES)
    opened = Interpreter(str(tmp_path / "model.tflite"))
    types = {tensor["index"]: tensor["dtype"] for tensor in opened.get_tensor_details()}
    kernels = [types[each["inputs"][1]] for each in opened._get_ops_details() if "CONV_2D" in each["op_name"]]
    assert facts["precision"] == "int8"
    assert kernels == [np.float32] * 7 + [np.int8] * 45
