import hashlib
import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation import export
from mobilenet_pipeline.inference.artefact import Artefact
from mobilenet_pipeline.models import network as networks

ROOT = Path(__file__).resolve().parents[2]
NAMES = [*"abcdefghi", "é 10"]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def interpreter(path: Path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path))


def classifier(scale: float = 1 / 255) -> keras.Model:
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(scale)(image))
    return keras.Model(image, keras.layers.Softmax()(keras.layers.Dense(10, name="logits")(x)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, path = classifier(), tmp_path_factory.mktemp("export") / "model.tflite"
    return model, path, export.export(model, path, class_names=NAMES)


def test_the_artefact_answers_like_its_model(exported):
    model, path, _ = exported
    assert export.check_parity(model, path, IMAGES)["argmax_differences"] == 0


def test_the_energy_is_the_logsumexp_of_the_logits(exported):
    model, path, _ = exported
    logits = keras.Model(model.input, model.get_layer("logits").output)(IMAGES)
    np.testing.assert_allclose(Artefact(path).answer(IMAGES).energy, keras.ops.logsumexp(logits, axis=-1), rtol=1e-5)


def test_a_model_without_logits_is_refused(tmp_path):
    image = keras.Input((32, 32, 3), dtype="uint8")
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="head")(means))
    with pytest.raises(ValueError, match="ends with head, a Dense layer; end it with a Softmax layer"):
        export.export(model, tmp_path / "model.tflite")


def test_size_and_digest_are_those_of_the_file(exported):
    _, path, facts = exported
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts == {"sha256": digest, "bytes": path.stat().st_size, "precision": "float32"}


def test_class_names_input_and_outputs_travel_in_the_artefact(exported):
    with zipfile.ZipFile(exported[1]) as archive:
        labels, metadata = archive.read("labels.txt"), json.loads(archive.read("metadata.json"))
    assert labels.decode().splitlines() == metadata["class_names"] == NAMES
    assert "uint8 from 0 to 255" in metadata["input"]
    assert list(metadata["outputs"]) == ["probabilities", "energy"]


def test_the_same_model_gives_the_same_bytes(exported, tmp_path):
    model, _, facts = exported
    assert export.export(model, tmp_path / "model.tflite", class_names=NAMES) == facts


def test_an_artefact_of_another_model_is_refused(exported):
    _, path, _ = exported
    with pytest.raises(export.ParityError, match="does not answer like its model"):
        export.check_parity(classifier(1.0), path, IMAGES)


def test_a_model_that_answers_nan_is_refused(exported):
    _, path, _ = exported
    model = classifier()
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(export.ParityError, match="nan"):
        export.check_parity(model, path, IMAGES)


@pytest.fixture(scope="module")
def network():
    """A MobileNet with the bundled weights: with random weights, its answers hardly depend on the image."""
    keras.utils.set_random_seed(0)
    candidate = config.load_recipe("digits", ROOT / "params.yaml").candidate("pretrained")
    model = networks.build(candidate, (32, 32, 3), 10)
    networks.load_pretrained(model, candidate)
    return model


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("float32") / "model.tflite"
    return path, export.export(network, path)


def test_convolutions_of_an_artefact_include_the_normalisation(whole):
    operations = [each["op_name"] for each in interpreter(whole[0])._get_ops_details()]
    assert operations.count("CONV_2D") + operations.count("DEPTHWISE_CONV_2D") == 27
    # The only product is that of pixels and their scale; the energy adds a difference.
    assert operations.count("MUL") == 1


@pytest.fixture(scope="module")
def quantised(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.tflite"
    return path, export.export(network, path, "int8", IMAGES)


def test_an_int8_artefact_has_the_interface_of_a_float32_one(quantised):
    path, facts = quantised
    shares = Artefact(path).predict(IMAGES)
    assert (facts["precision"], shares.dtype, shares.shape) == ("int8", np.float32, (len(IMAGES), 10))


def test_an_int8_artefact_is_less_than_half_as_large(whole, quantised):
    assert quantised[1]["bytes"] < whole[1]["bytes"] / 2


def test_an_int8_artefact_answers_nearly_like_its_model(network, quantised):
    found = export.compare(network, quantised[0], IMAGES)
    assert 0 < found["max_probability_difference"] < 0.1


def test_int8_probabilities_are_not_rounded_to_one_in_256(quantised):
    shares = Artefact(quantised[0]).predict(IMAGES)
    assert np.abs(shares * 256 - np.round(shares * 256)).max() > 0.1


def test_an_int8_artefact_does_not_pass_for_a_float32_one(network, quantised):
    with pytest.raises(export.ParityError, match="does not answer like its model"):
        export.check_parity(network, quantised[0], IMAGES)


def test_int8_energies_are_not_rounded(network, quantised):
    assert export.compare(network, quantised[0], IMAGES)["max_energy_difference"] < 0.05
    names = [tensor["dtype"] for tensor in interpreter(quantised[0]).get_output_details()]
    operations = [each["op_name"] for each in interpreter(quantised[0])._get_ops_details()]
    assert names == [np.float32, np.float32]
    assert operations[operations.index("FULLY_CONNECTED") :].count("QUANTIZE") == 0


def test_the_first_convolutions_of_an_int8_artefact_stay_float32(quantised):
    opened = interpreter(quantised[0])
    types = {tensor["index"]: tensor["dtype"] for tensor in opened.get_tensor_details()}
    kernels = [
        types[operation["inputs"][1]]
        for operation in opened._get_ops_details()
        if operation["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D")
    ]
    assert kernels == [np.float32] * 7 + [np.int8] * 20


def test_a_network_with_few_convolutions_becomes_int8_as_a_whole(tmp_path):
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    export.export(keras.Model(image, keras.layers.Softmax()(x)), tmp_path / "model.tflite", "int8", IMAGES)
    opened = interpreter(tmp_path / "model.tflite")
    kernels = [tensor["dtype"] for tensor in opened.get_tensor_details() if tuple(tensor["shape"][1:3]) == (3, 3)]
    assert kernels == [np.int8, np.int8]


def test_an_int8_artefact_scales_faint_images_like_its_model(tmp_path):
    keras.utils.set_random_seed(0)
    candidate = config.load_recipe("digits", ROOT / "params.yaml").candidate("pretrained")
    model = networks.build(candidate.model_copy(update={"pixel_range": "standard"}), (32, 32, 3), 10)
    networks.load_pretrained(model, candidate)
    faint = 100 + IMAGES // 32  # eight levels of grey
    export.export(model, tmp_path / "model.tflite", "int8", IMAGES)
    assert export.compare(model, tmp_path / "model.tflite", faint)["max_probability_difference"] < 0.05


def test_int8_without_calibration_images_leaves_the_file(network, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"before")
    with pytest.raises(ValueError, match="int8 needs calibration images"):
        export.export(network, tmp_path / "model.tflite", "int8")
    assert (tmp_path / "model.tflite").read_bytes() == b"before"


@pytest.mark.parametrize("pixel_range", ["unit", "signed", "standard"])
def test_a_model_that_was_saved_in_another_process_can_be_exported(tmp_path, pixel_range):
    candidate = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
    model = networks.build(candidate.model_copy(update={"pixel_range": pixel_range}), (32, 32, 3), 10)
    model.save(tmp_path / "model.keras")
    keras.utils.clear_session()  # names begin anew, as in another process
    loaded = export.load_model(tmp_path / "model.keras")
    export.export(loaded, tmp_path / "model.tflite")
    assert export.check_parity(loaded, tmp_path / "model.tflite", IMAGES)["argmax_differences"] == 0
