"""The program that tries a Bento: what passes, and the sentence of every failure."""

import io
import json
import shutil
from pathlib import Path

import pytest
from bento_fixtures import SMALL, Service
from PIL import Image

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.release import bento
from serving import check
from serving.check import CheckError


def test_a_service_like_its_artefact_passes(service: Service, served_versions: list[Path]) -> None:
    check.check(service.client, served_versions[1], 1000)


def test_another_version_fails(service: Service, served_versions: list[Path]) -> None:
    with pytest.raises(CheckError, match="it serves version 2, not version 1"):
        check.check(service.client, served_versions[0], 1000)


def test_answers_unlike_the_artefact_s_fail(service: Service, served_versions: list[Path], tmp_path: Path) -> None:
    shutil.copy(served_versions[1] / "metadata.json", tmp_path)
    shutil.copy(served_versions[0] / "model.tflite", tmp_path)
    with pytest.raises(CheckError, match=r"its probabilities over HTTP are \[.*\], those of its artefact \["):
        check.check(service.client, tmp_path, 1000)


def test_a_slow_service_fails(service: Service, served_versions: list[Path]) -> None:
    with pytest.raises(CheckError, match=r"its median latency is .* ms, and the recipe allows 0\.001 ms"):
        check.check(service.client, served_versions[1], 0.001)


def test_a_refused_request_fails_with_the_answer(service: Service) -> None:
    with pytest.raises(CheckError, match=r"/predict answers with status 400: .*not_an_image"):
        check.ask(service.client, "/predict", b"no image")


def test_a_server_that_ends_fails_with_its_log() -> None:
    command = ["sh", "-c", "echo the reason; exit 3"]
    with (
        pytest.raises(CheckError, match=r"ended with status 3 before it was ready; (?s:.*)the reason"),
        check.serving(command, "http://127.0.0.1:9"),
    ):
        pass


def test_golden_images_include_the_model_s_size() -> None:
    sizes = [Image.open(io.BytesIO(file)).size for file in check.golden_images(SMALL)]
    assert sizes[:2] == [(SMALL, SMALL)] * 2
    assert len(set(sizes)) > 2


def test_a_bento_of_other_image_size_passes(own_bento_store: Path, served_recipe: Recipe, small_version: Path) -> None:
    bento.check(bento.package(served_recipe, small_version, None), 1000)


def test_a_bento_of_two_image_sizes_fails(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path], small_version: Path
) -> None:
    mixed = bento.package(served_recipe, served_versions[0], small_version)
    with pytest.raises(bento.PackagingError, match="the models of a Bento take images of one shape"):
        bento.check(mixed, 1000)


def test_a_bento_that_decodes_unlike_its_training_fails(own_bento_store: Path, served_recipe: Recipe) -> None:
    champion = bento.served_models(served_recipe)["champion"]
    assert champion is not None
    document = json.loads((champion / "metadata.json").read_text()) | {"preprocessing": "0" * 64}
    (champion / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(bento.PackagingError, match="decodes images differently from the training of version 2"):
        bento.check(str(bento.live(served_recipe)), 1000)
