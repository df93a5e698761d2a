import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from running_service import CLASSES

from mobilenet_pipeline import prediction, preprocess
from mobilenet_pipeline.artefact import Artefact, ArtefactError


def test_each_model_gives_all_classes(versions: list[Path], encode: Callable[..., bytes]) -> None:
    found = prediction.predict(encode(), {"champion": versions[1], "challenger": versions[0]})
    for role, folder in (("champion", versions[1]), ("challenger", versions[0])):
        expected = Artefact(folder / "model.tflite").predict(preprocess.decode(encode())[None])[0]
        assert list(found[role]) == CLASSES
        assert np.allclose(list(found[role].values()), expected)


def test_without_a_challenger_there_is_one_answer(versions: list[Path], encode: Callable[..., bytes]) -> None:
    assert list(prediction.predict(encode(), {"champion": versions[0], "challenger": None})) == ["champion"]


def test_what_is_no_image_is_refused(versions: list[Path]) -> None:
    with pytest.raises(preprocess.ImageError, match="not an image"):
        prediction.predict(b"hello", {"champion": versions[0]})


def test_a_folder_without_class_names_is_refused_with_its_name(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    with pytest.raises(ArtefactError, match=str(tmp_path / "metadata.json")):
        prediction.predict(encode(), {"champion": tmp_path})


def test_the_table_has_a_row_a_class_and_the_answers_below() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    shares = {"cat": 0.75, "dog": 0.2, "[odd]": 0.05}
    prediction.print_table({"champion": shares, "challenger": {**shares, "dog": 0.9}}, "photo.jpg", console)
    lines = [line.split() for line in console.export_text().replace("│", " ").splitlines()]
    assert ["cat", "75.00%", "75.00%"] in lines
    assert ["dog", "20.00%", "90.00%"] in lines
    assert ["[odd]", "5.00%", "5.00%"] in lines
    assert ["answer", "cat", "dog"] in lines
