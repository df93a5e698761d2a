"""Artefacts into Bentos: what is built, what is found, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running_service import Service

from mobilenet_pipeline import packaging
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.packaging import Bento, PackagingError

NAME = "cifar10-mobilenet"


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which nothing was packaged yet."""
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".bentoml"


@pytest.fixture
def own_store(filled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the filled store."""
    copy = tmp_path / "store"
    shutil.copytree(filled_store, copy, ignore=shutil.ignore_patterns("servers"))
    monkeypatch.setenv("BENTOML_HOME", str(copy))
    return copy


def bento_folder(store: Path) -> Path:
    bento = packaging.latest(NAME)
    assert bento is not None
    return store / "bentos" / bento.tag.replace(":", "/")


def test_the_newest_bento_says_which_versions_it_serves(store: Path, recipe: Recipe) -> None:
    found = packaging.latest(recipe)
    assert found == Bento(str(found), "2", "1")
    assert packaging.latest(NAME) == found


def test_bentoml_means_the_same_by_latest(store: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "get", f"{NAME}:latest", "-o", "path"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert Path(done.stdout.strip()) == bento_folder(store)


def test_the_served_models_are_found_without_bentoml(store: Path, versions: list[Path]) -> None:
    found = packaging.served_models(NAME)
    for role, version in (("champion", versions[1]), ("challenger", versions[0])):
        folder = found[role]
        assert folder is not None
        assert (folder / "model.tflite").read_bytes() == (version / "model.tflite").read_bytes()
    assert "bentoml" not in sys.modules


def test_a_bento_holds_the_service_and_nothing_of_the_training(store: Path) -> None:
    source = bento_folder(store) / "src"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    expected = {f"serving/{name}" for name in packaging.SERVICE}
    assert found == expected | {f"mobilenet_pipeline/{name}" for name in packaging.SHARED}


def test_a_bento_asks_for_pinned_serving_packages_only(store: Path) -> None:
    lines = (bento_folder(store) / "env" / "python" / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == {"ai-edge-litert", "bentoml", "numpy", "pillow"}
    assert all("==" in line for line in lines)


def test_the_same_artefacts_give_the_same_bento_and_build_nothing(
    store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    built = (bento_folder(store) / "bento.yaml").stat().st_mtime_ns
    assert packaging.package(recipe, versions[1], versions[0]) == str(packaging.latest(NAME))
    assert (bento_folder(store) / "bento.yaml").stat().st_mtime_ns == built


def test_going_back_to_earlier_artefacts_makes_their_bento_the_newest_again(
    own_store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    first = packaging.latest(NAME)
    second = packaging.package(recipe, versions[0], None)
    assert packaging.latest(NAME) == Bento(second, "1", None)
    assert packaging.package(recipe, versions[1], versions[0]) == str(first)
    assert packaging.latest(NAME) == first


def test_a_discarded_bento_leaves_the_one_before(own_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    first = packaging.latest(NAME)
    packaging.discard(packaging.package(recipe, versions[0], None))
    assert packaging.latest(NAME) == first


def test_a_build_that_fails_leaves_the_one_before(
    own_store: Path, recipe: Recipe, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packaging.latest(NAME)
    monkeypatch.setattr(packaging, "SERVICE", tuple(set(packaging.SERVICE) - {"served.py"}))
    with pytest.raises(PackagingError, match=r"building cifar10-mobilenet:1-(?s:.)*serving.served"):
        packaging.package(recipe, versions[0], None)
    assert packaging.latest(NAME) == first


def test_a_model_that_was_damaged_in_the_store_is_written_again(
    own_store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    champion = packaging.served_models(NAME)["champion"]
    assert champion is not None
    (champion / "model.tflite").write_bytes(b"damaged")
    tag = packaging.package(recipe, versions[1], versions[0])
    assert (champion / "model.tflite").read_bytes() == (versions[1] / "model.tflite").read_bytes()
    assert tag == str(packaging.latest(NAME))


def test_the_store_is_in_the_workspace(empty_store: Path) -> None:
    assert packaging.home() == empty_store


def test_before_the_first_promotion_there_is_nothing_to_serve(empty_store: Path, recipe: Recipe) -> None:
    assert packaging.latest(recipe) is None
    with pytest.raises(PackagingError, match=r"no Bento of cifar10-mobilenet.*mobilenet-pipeline run"):
        packaging.served_models(recipe)


def test_an_artefact_that_is_not_what_was_registered_is_refused(
    empty_store: Path, recipe: Recipe, versions: list[Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(versions[0], tmp_path / "damaged")
    (damaged / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"damaged/model.tflite is damaged: its SHA-256 is"):
        packaging.package(recipe, damaged, None)
    assert packaging.latest(NAME) is None


def test_an_artefact_of_another_model_is_refused(
    empty_store: Path, recipe: Recipe, versions: list[Path], tmp_path: Path
) -> None:
    other = shutil.copytree(versions[0], tmp_path / "other")
    document = json.loads((other / "metadata.json").read_text()) | {"registered_model": "digits-mobilenet"}
    (other / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(PackagingError, match="is of digits-mobilenet"):
        packaging.package(recipe, other, None)


def test_a_name_that_bentoml_would_change_is_refused(empty_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    named = recipe.model_copy(update={"registered_model": "CIFAR10 MobileNet"})
    with pytest.raises(PackagingError, match=r"recipes.cifar10.registered_model is 'CIFAR10 MobileNet'"):
        packaging.package(named, versions[0], None)


def test_a_bento_that_answers_like_its_artefact_passes_the_check_beside_one_that_serves(
    service: Service, store: Path, recipe: Recipe
) -> None:
    before = service.ask("GET", "/metrics").text.count("request_total{")
    packaging.check(service.tag)
    assert service.ask("GET", "/metrics").text.count("request_total{") >= before > 0
    assert [path.name for path in (store / "servers").iterdir()] == [service.address.rpartition(":")[2]]


def test_a_bento_that_does_not_start_fails_the_check_with_its_log(own_store: Path) -> None:
    champion = packaging.served_models(NAME)["champion"]
    assert champion is not None
    (champion / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"is damaged: its SHA-256 is"):
        packaging.check(str(packaging.latest(NAME)))
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(own_store) in _command(process)]


def _command(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])
