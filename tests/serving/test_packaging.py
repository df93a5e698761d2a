"""Artefacts into Bentos: what is built, what is found, what is refused."""

import json
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
from serving import check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which nothing was packaged yet."""
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".bentoml"


def bento_folder(store: Path, recipe: Recipe) -> Path:
    bento = packaging.live(recipe)
    assert bento is not None
    return store / "bentos" / bento.tag.replace(":", "/")


def sha256(version: Path) -> str:
    return str(json.loads((version / "metadata.json").read_text())["sha256"])


def test_the_live_bento_says_which_versions_and_artefacts_it_serves(
    store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    found = packaging.live(recipe)
    hashes = {"champion": sha256(versions[1]), "challenger": sha256(versions[0])}
    assert found == Bento(str(found), {"champion": "2", "challenger": "1"}, hashes, True)


def test_a_bento_of_other_code_than_today_s_is_not_current(
    store: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "SERVICE", packaging.SERVICE[:-1])
    found = packaging.live(recipe)
    assert found is not None
    assert not found.is_current


def test_the_served_models_are_the_versions_that_were_packaged(
    store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    found = packaging.served_models(recipe)
    for role, version in (("champion", versions[1]), ("challenger", versions[0])):
        folder = found[role]
        assert folder is not None
        assert (folder / "model.tflite").read_bytes() == (version / "model.tflite").read_bytes()


def test_the_served_models_are_found_without_bentoml(store: Path) -> None:
    code = (
        "import sys; from mobilenet_pipeline import config, packaging; "
        "packaging.served_models(config.load_recipe('cifar10')); sys.exit('bentoml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_bento_holds_the_service_and_nothing_of_the_training(store: Path, recipe: Recipe) -> None:
    source = bento_folder(store, recipe) / "src"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*.*") if path.suffix in (".py", ".html")}
    expected = {f"serving/{name}" for name in packaging.SERVICE}
    assert found == expected | {f"mobilenet_pipeline/{name}" for name in packaging.SHARED}


def test_a_bento_asks_for_pinned_serving_packages_only(store: Path, recipe: Recipe) -> None:
    lines = (bento_folder(store, recipe) / "env" / "python" / "requirements.txt").read_text().split()
    assert {"bentoml", "starlette", *packaging.PACKAGES} <= {line.partition("==")[0] for line in lines}
    assert not any(line.startswith(("tensorflow", "keras", "mlflow")) for line in lines)
    assert all("==" in line for line in lines)


def test_the_same_artefacts_give_the_same_bento_and_build_nothing(
    store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    built = (bento_folder(store, recipe) / "bento.yaml").stat().st_mtime_ns
    assert packaging.package(recipe, versions[1], versions[0]) == str(packaging.live(recipe))
    assert (bento_folder(store, recipe) / "bento.yaml").stat().st_mtime_ns == built


def test_a_bento_that_was_only_built_is_not_live(own_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    first = packaging.live(recipe)
    packaging.package(recipe, versions[0], None)
    assert packaging.live(recipe) == first


def test_going_back_to_earlier_artefacts_builds_nothing(own_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    first = packaging.live(recipe)
    second = packaging.package(recipe, versions[0], None)
    packaging.put_live(second)
    hashes = {"champion": sha256(versions[0]), "challenger": None}
    assert packaging.live(recipe) == Bento(second, {"champion": "1", "challenger": None}, hashes, True)
    packaging.put_live(packaging.package(recipe, versions[1], versions[0]))
    assert packaging.live(recipe) == first


def test_a_discarded_bento_leaves_the_live_one(own_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    first = packaging.live(recipe)
    packaging.discard(packaging.package(recipe, versions[0], None))
    assert packaging.live(recipe) == first


def test_a_live_bento_that_someone_deleted_is_none(own_store: Path, recipe: Recipe) -> None:
    packaging.discard(str(packaging.live(recipe)))
    assert packaging.live(recipe) is None


def test_a_build_that_fails_leaves_the_live_one(
    own_store: Path, recipe: Recipe, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packaging.live(recipe)
    monkeypatch.setattr(packaging, "SERVICE", tuple(set(packaging.SERVICE) - {"served.py"}))
    with pytest.raises(PackagingError, match=r"building cifar10-mobilenet:1-(?s:.)*serving.served"):
        packaging.package(recipe, versions[0], None)
    assert str(packaging.live(recipe)) == str(first)


def test_a_model_that_was_damaged_in_the_store_is_written_again(
    own_store: Path, recipe: Recipe, versions: list[Path]
) -> None:
    champion = packaging.served_models(recipe)["champion"]
    assert champion is not None
    (champion / "model.tflite").write_bytes(b"damaged")
    tag = packaging.package(recipe, versions[1], versions[0])
    assert (champion / "model.tflite").read_bytes() == (versions[1] / "model.tflite").read_bytes()
    assert tag == str(packaging.live(recipe))


def test_an_artefact_that_was_damaged_in_the_store_is_not_what_was_promoted(own_store: Path, recipe: Recipe) -> None:
    before = packaging.live(recipe)
    champion = packaging.served_models(recipe)["champion"]
    assert champion is not None
    (champion / "model.tflite").write_bytes(b"damaged")
    found = packaging.live(recipe)
    assert before is not None
    assert found is not None
    assert found.hashes["champion"] != before.hashes["champion"]


def test_what_a_killed_build_has_left_is_built_again(own_store: Path, recipe: Recipe, versions: list[Path]) -> None:
    folder = bento_folder(own_store, recipe)
    for name in ("bento.yaml", packaging.BUILT):
        (folder / name).unlink()
    champion = packaging.served_models(recipe)["champion"]
    assert champion is not None
    (champion / "model.yaml").unlink()
    assert packaging.package(recipe, versions[1], versions[0]) == str(packaging.live(recipe))
    assert (folder / "bento.yaml").exists()
    assert (champion / "model.yaml").exists()


def test_the_store_is_in_the_workspace(empty_store: Path) -> None:
    assert packaging.home() == empty_store


def test_before_the_first_promotion_there_is_nothing_to_serve(empty_store: Path, recipe: Recipe) -> None:
    assert packaging.live(recipe) is None
    with pytest.raises(PackagingError, match=r"nothing of cifar10 is served.*mobilenet-pipeline run"):
        packaging.served_models(recipe)


def test_an_artefact_that_is_not_what_was_registered_is_refused(
    empty_store: Path, recipe: Recipe, versions: list[Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(versions[0], tmp_path / "damaged")
    (damaged / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"damaged/model.tflite is damaged: its SHA-256 is"):
        packaging.package(recipe, damaged, None)
    assert packaging.live(recipe) is None


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
    before = service.ask("GET", "/metrics").text.count("requests_total{")
    packaging.check(service.tag, 1000)
    assert service.ask("GET", "/metrics").text.count("requests_total{") >= before > 0


def test_a_key_for_those_who_ask_does_not_keep_the_check_out(
    service: Service, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "secret")
    packaging.check(service.tag, 1000)


def test_a_bento_that_does_not_start_fails_the_check_with_its_log(own_store: Path, recipe: Recipe) -> None:
    champion = packaging.served_models(recipe)["champion"]
    assert champion is not None
    (champion / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"is damaged: its SHA-256 is"):
        packaging.check(str(packaging.live(recipe)), 1000)
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(own_store) in _command(process)]


def test_a_bento_that_decodes_images_otherwise_than_training_did_does_not_start(
    own_store: Path, recipe: Recipe
) -> None:
    champion = packaging.served_models(recipe)["champion"]
    assert champion is not None
    document = json.loads((champion / "metadata.json").read_text()) | {"preprocessing": "0" * 64}
    (champion / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(PackagingError, match="decodes images otherwise than the training of version 2 did"):
        packaging.check(str(packaging.live(recipe)), 1000)


def test_a_bento_that_is_too_slow_fails_the_check(service: Service, store: Path) -> None:
    with pytest.raises(PackagingError, match=r"half of its answers take more than .* ms, the recipe allows 0\.001"):
        packaging.check(service.tag, 0.001)


def test_a_service_that_serves_another_version_fails_the_check(service: Service, versions: list[Path]) -> None:
    with pytest.raises(check.CheckError, match="it says that it serves version 2, not 1"):
        check.check(service.address, versions[0], 1000)


def test_a_service_whose_answers_are_not_those_of_the_artefact_fails_the_check(
    service: Service, versions: list[Path], tmp_path: Path
) -> None:
    shutil.copy(versions[1] / "metadata.json", tmp_path)
    shutil.copy(versions[0] / "model.tflite", tmp_path)
    with pytest.raises(check.CheckError, match=r"its probabilities over HTTP are \[.*\], those of its artefact \["):
        check.check(service.address, tmp_path, 1000)


def _command(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])
