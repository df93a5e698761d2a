import keras
import numpy as np
import pytest

from mobilenet_pipeline import export

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def classifier(scale: float = 1 / 255) -> keras.Model:
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(scale)(image))
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, path = classifier(), tmp_path_factory.mktemp("export") / "model.tflite"
    return model, path, export.export(model, path)


def test_the_artefact_answers_like_its_model(exported):
    model, path, _ = exported
    assert export.check_parity(model, path, IMAGES)["argmax_differences"] == 0


def test_size_and_digest_are_those_of_the_file(exported):
    import hashlib

    _, path, facts = exported
    assert facts == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


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
