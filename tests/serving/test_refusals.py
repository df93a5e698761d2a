"""Every refusal: its code, its sentence, and what it asks for."""

import pytest

from mobilenet_pipeline.inference.preprocess import ImageError
from serving import refusals
from serving.refusals import Refusal

ALL = [
    refusals.missing("/predict"),
    refusals.missing("/predict_batch"),
    refusals.text_field(),
    refusals.missing_field(["photo"]),
    refusals.missing_files([]),
    refusals.empty(),
    refusals.unreadable(ImageError("damaged", "The image file is damaged (cut off).")),
    refusals.malformed("/predict"),
    refusals.cut_off(),
    refusals.wrong_length(3073, (32, 32, 3)),
    refusals.unauthorized(),
    refusals.unknown_path(["/predict"]),
    refusals.wrong_method("/predict", ("POST",)),
    refusals.too_slow(15),
    refusals.too_large(10 * 2**20),
    refusals.too_many_images(257, 256),
    refusals.no_content_type("/predict"),
    refusals.unsupported("text/plain", "/predict"),
    refusals.encoded("gzip"),
    refusals.failed(),
    refusals.overloaded(),
]


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.code)
def test_a_refusal_has_a_code_and_a_sentence(refusal: Refusal) -> None:
    error = refusal.document()["error"]
    assert str(error["code"]).replace("_", "").isalpha()
    assert str(error["message"])[0].isupper() or str(error["message"]).startswith(("/", "3"))
    assert str(error["message"]).endswith(".")
    assert refusal.response().status_code == refusal.status >= 400


def test_the_hint_depends_on_the_address() -> None:
    assert "in the field 'image'" in str(refusals.missing("/predict"))
    assert "in a field 'images'" in str(refusals.missing("/predict_batch"))


def test_a_missing_field_lists_every_field_once() -> None:
    assert "(fields: 'photo', 'note')" in str(refusals.missing_field(["photo", "note", "photo"]))
    assert "(fields: none)" in str(refusals.missing_files([]))


def test_a_wrong_length_gives_the_model_s_image_size() -> None:
    sentence = str(refusals.wrong_length(1000, (20, 30, 3)))
    assert sentence.startswith("1,000 bytes are not a whole number of images; an image has 1,800 bytes")
    assert "20 rows of 30 RGB pixels" in sentence
