"""The answers of the promoted models to one photo."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bento_fixtures import CLASSES, SMALL_CLASSES, THRESHOLDS

from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import Artefact, ArtefactError
from mobilenet_pipeline.release.predict import predict


def test_each_model_gives_every_class(served_versions: list[Path], encode: Callable[..., bytes]) -> None:
    answers = predict(encode(), {"champion": served_versions[1], "challenger": served_versions[0]})
    for role, folder in (("champion", served_versions[1]), ("challenger", served_versions[0])):
        expected = Artefact(folder / "model.tflite").predict(preprocess.decode(encode(), 32)[None])[0]
        assert list(answers[role].probabilities) == CLASSES
        assert np.allclose(list(answers[role].probabilities.values()), expected)


def test_an_answer_has_its_prediction_set_and_its_flag(
    served_versions: list[Path], encode: Callable[..., bytes]
) -> None:
    answer = predict(encode(), {"champion": served_versions[0]})["champion"]
    likely = [name for name, share in answer.probabilities.items() if share >= THRESHOLDS["probability"]]
    assert sorted(answer.prediction_set or []) == sorted(likely)
    assert (answer.coverage, type(answer.unfamiliar)) == (0.95, bool)


def test_a_version_of_an_earlier_release_has_neither(small_version: Path, encode: Callable[..., bytes]) -> None:
    answer = predict(encode(), {"champion": small_version})["champion"]
    assert (answer.coverage, answer.prediction_set, answer.unfamiliar) == (None, None, None)


def test_without_a_challenger_there_is_one_answer(served_versions: list[Path], encode: Callable[..., bytes]) -> None:
    assert list(predict(encode(), {"champion": served_versions[0], "challenger": None})) == ["champion"]


def test_an_unreadable_image_is_refused(served_versions: list[Path]) -> None:
    with pytest.raises(preprocess.ImageError, match="not an image"):
        predict(b"hello", {"champion": served_versions[0]})


def test_a_folder_without_class_names_is_named(
    served_versions: list[Path], tmp_path: Path, encode: Callable[..., bytes]
) -> None:
    shutil.copy(served_versions[0] / "model.tflite", tmp_path)
    with pytest.raises(ArtefactError, match=str(tmp_path / "metadata.json")):
        predict(encode(), {"champion": tmp_path})


def test_a_photo_is_decoded_to_each_model_s_size(
    served_versions: list[Path], small_version: Path, encode: Callable[..., bytes]
) -> None:
    answers = predict(encode(), {"champion": served_versions[0], "challenger": small_version})
    assert [list(answer.probabilities) for answer in answers.values()] == [CLASSES, SMALL_CLASSES]
