import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bento_fixtures import SMALL, SMALL_CLASSES

from mobilenet_pipeline.inference import artefact
from mobilenet_pipeline.inference.artefact import Artefact, ArtefactError, check_sha256, sha256_of

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_every_image_gets_a_row_of_probabilities(artefacts: list[Path]) -> None:
    found = Artefact(artefacts[0]).predict(IMAGES)
    assert (found.shape, found.dtype) == ((5, 10), np.float32)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_every_image_gets_an_energy(artefacts: list[Path]) -> None:
    black, white = np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 32, 32, 3), 255, np.uint8)
    found = Artefact(artefacts[0]).answer(np.concatenate([black, white]))
    assert found.energy is not None
    assert found.energy[0] == pytest.approx(np.log(10))  # all logits are 0
    assert found.energy[1] != pytest.approx(np.log(10))


def test_an_artefact_of_an_earlier_release_gives_probabilities_only(exported: list[Path]) -> None:
    found = Artefact(exported[2]).answer(np.zeros((2, SMALL, SMALL, 3), np.uint8))
    assert (found.probabilities.shape, found.energy) == ((2, len(SMALL_CLASSES)), None)


def test_an_image_has_the_same_answer_alone_and_in_a_batch(artefacts: list[Path]) -> None:
    model = Artefact(artefacts[0])
    batch = model.predict(IMAGES)
    assert np.allclose(np.concatenate([model.predict(image[None]) for image in IMAGES]), batch, atol=1e-6)


def test_more_images_than_the_model_is_asked_at_once_are_all_answered(artefacts, monkeypatch) -> None:
    at_once = Artefact(artefacts[0]).answer(IMAGES)
    monkeypatch.setattr(artefact, "LARGEST", 1)
    asked = Artefact(artefacts[0]).answer(IMAGES)
    assert np.allclose(asked.probabilities, at_once.probabilities, atol=1e-6)
    assert np.allclose(asked.energy, at_once.energy, atol=1e-5)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES.astype(np.float32), IMAGES[:, :16], IMAGES[:0]])
def test_other_shapes_and_types_are_refused(artefacts: list[Path], images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(n, 32, 32, 3\)"):
        Artefact(artefacts[0]).predict(images)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), None])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=str(path)):
        Artefact(path)


def test_a_truncated_model_is_refused_by_name(artefacts: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(artefacts[0].read_bytes()[:1500])
    with pytest.raises(ArtefactError, match=str(path)):
        Artefact(path)


def test_the_image_shape_is_that_of_the_model(exported: list[Path]) -> None:
    assert [Artefact(path).image_shape for path in exported] == [(32, 32, 3), (32, 32, 3), (SMALL, SMALL, 3)]


def test_a_model_of_smaller_images_answers_them(exported: list[Path]) -> None:
    images = np.zeros((2, SMALL, SMALL, 3), np.uint8)
    assert Artefact(exported[2]).predict(images).shape == (2, len(SMALL_CLASSES))


def test_images_of_the_wrong_size_are_refused_with_the_right_one(exported: list[Path]) -> None:
    with pytest.raises(ValueError, match=rf"uint8 \(n, {SMALL}, {SMALL}, 3\)"):
        Artefact(exported[2]).predict(IMAGES)


def test_a_large_file_is_hashed_piece_by_piece(tmp_path: Path) -> None:
    content = bytes(2**24)
    (tmp_path / "large").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    tracemalloc.start()
    try:
        assert sha256_of(tmp_path / "large") == expected
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [None, b"changed"])
def test_a_changed_or_missing_file_is_damaged(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"model")
    expected = sha256_of(path)
    check_sha256(path, expected)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"model\.tflite is damaged: .*{expected}"):
        check_sha256(path, expected)
