from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline.artefact import Artefact, ArtefactError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_probabilities_come_a_row_an_image(artefacts: list[Path]) -> None:
    found = Artefact(artefacts[0]).predict(IMAGES)
    assert (found.shape, found.dtype) == ((5, 10), np.float32)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_an_image_gets_the_same_answer_alone_and_among_others(artefacts: list[Path]) -> None:
    artefact = Artefact(artefacts[0])
    together = artefact.predict(IMAGES)
    assert np.allclose(np.concatenate([artefact.predict(image[None]) for image in IMAGES]), together, atol=1e-6)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES.astype(np.float32), IMAGES[:, :16], IMAGES[:0]])
def test_what_is_no_batch_of_images_is_refused(artefacts: list[Path], images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(n, 32, 32, 3\)"):
        Artefact(artefacts[0]).predict(images)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), None])
def test_a_file_that_is_no_model_is_refused_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=str(path)):
        Artefact(path)


def test_half_a_model_is_refused_with_its_name(artefacts: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(artefacts[0].read_bytes()[:1500])
    with pytest.raises(ArtefactError, match=str(path)):
        Artefact(path)
