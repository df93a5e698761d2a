"""Versions to Bentos: what is built, what is live, what is refused."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from bento_fixtures import Service

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.release.bento import Bento, PackagingError

ROOT = Path(__file__).resolve().parents[2]
SERVICE = {
    "__init__.py",
    "answers.py",
    "docs.html",
    "front_door.py",
    "live.py",
    "measures.py",
    "openapi.py",
    "page.html",
    "record.py",
    "refusals.py",
    "served.py",
    "service.py",
    "uploads.py",
    "settings.py",
}


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a workspace in which nothing was packaged yet."""
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".bentoml"


def bento_folder(store: Path, recipe: Recipe) -> Path:
    return store / "bentos" / str(bento.live(recipe)).replace(":", "/")


def champion_folder(recipe: Recipe) -> Path:
    folder = bento.served_models(recipe)["champion"]
    assert folder is not None
    return folder


def sha256(version: Path) -> str:
    return str(json.loads((version / "metadata.json").read_text())["sha256"])


def command_line(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def test_a_live_bento_has_its_versions_and_hashes(
    bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    live = bento.live(served_recipe)
    hashes = {"champion": sha256(served_versions[1]), "challenger": sha256(served_versions[0])}
    assert live == Bento(str(live), {"champion": "2", "challenger": "1"}, hashes, True, live.answering)


def test_a_bento_of_other_code_is_not_current(
    bento_store: Path, served_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bento, "PROGRAMS", (*bento.PROGRAMS, "page.html"))
    live = bento.live(served_recipe)
    assert live is not None
    assert not live.is_current


def test_the_served_models_are_the_packaged_versions(
    bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    folders = bento.served_models(served_recipe)
    for role, version in (("champion", served_versions[1]), ("challenger", served_versions[0])):
        folder = folders[role]
        assert folder is not None
        assert (folder / "model.tflite").read_bytes() == (version / "model.tflite").read_bytes()


def test_the_served_models_are_found_without_bentoml(bento_store: Path) -> None:
    code = (
        "import sys; from mobilenet_pipeline import config; from mobilenet_pipeline.release import bento; "
        "bento.served_models(config.load_recipe('cifar10')); sys.exit('bentoml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_bento_has_the_service_without_training_code(bento_store: Path, served_recipe: Recipe) -> None:
    source = bento_folder(bento_store, served_recipe) / "src"
    code = {path.relative_to(source).as_posix() for path in source.rglob("*.*") if path.suffix in (".py", ".html")}
    assert code == {f"serving/{name}" for name in SERVICE} | {f"mobilenet_pipeline/{name}" for name in bento.SHARED}


def test_the_service_imports_nothing_that_a_bento_lacks() -> None:
    files = [*(ROOT / "src" / "mobilenet_pipeline" / name for name in bento.SHARED), *(ROOT / "serving").glob("*.py")]
    imported = set()
    for file in files:
        if file.name not in bento.PROGRAMS:
            nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
            places = [(str(node.module), alias.name) for node in nodes for alias in node.names]
            imported |= {f"{place}.{name}" if place.count(".") < 2 else place for place, name in places}
    ours = {name for name in imported if name.startswith("mobilenet_pipeline.")}
    assert {f"{name.partition('.')[2].replace('.', '/')}.py" for name in ours} <= {*bento.SHARED}
    assert "mobilenet_pipeline.inference.artefact" in ours


def test_the_same_artefacts_build_nothing(
    bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    built = (bento_folder(bento_store, served_recipe) / "bento.yaml").stat().st_mtime_ns
    tag = bento.package(served_recipe, served_versions[1], served_versions[0])
    assert tag == str(bento.live(served_recipe))
    assert (bento_folder(bento_store, served_recipe) / "bento.yaml").stat().st_mtime_ns == built


def test_a_built_bento_is_not_live_by_itself(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    first = bento.live(served_recipe)
    bento.package(served_recipe, served_versions[0], None)
    assert bento.live(served_recipe) == first


def test_earlier_artefacts_give_the_earlier_bento(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    first = bento.live(served_recipe)
    second = bento.package(served_recipe, served_versions[0], None)
    bento.put_live(second)
    hashes = {"champion": sha256(served_versions[0]), "challenger": None}
    live = bento.live(served_recipe)
    assert live == Bento(second, {"champion": "1", "challenger": None}, hashes, True, live.answering)
    bento.put_live(bento.package(served_recipe, served_versions[1], served_versions[0]))
    assert bento.live(served_recipe) == first


def test_a_discarded_bento_leaves_the_live_one(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    first = bento.live(served_recipe)
    bento.discard(bento.package(served_recipe, served_versions[0], None))
    assert bento.live(served_recipe) == first


def test_a_deleted_bento_is_not_live(own_bento_store: Path, served_recipe: Recipe) -> None:
    bento.discard(str(bento.live(served_recipe)))
    assert bento.live(served_recipe) is None


def test_a_failed_build_leaves_the_live_one(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bento.live(served_recipe)
    monkeypatch.setattr(bento, "PROGRAMS", (*bento.PROGRAMS, "served.py"))
    with pytest.raises(PackagingError, match=r"building cifar10-mobilenet:1-(?s:.)*serving.served"):
        bento.package(served_recipe, served_versions[0], None)
    assert str(bento.live(served_recipe)) == str(first)


def test_a_build_needs_no_virtual_environment_on_path(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as cron has it
    tag = bento.package(served_recipe, served_versions[0], None)
    assert (own_bento_store / "bentos" / tag.replace(":", "/") / bento.BUILT).exists()


def test_a_build_finds_the_tools_beside_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    script = tmp_path / "which.py"
    script.write_text("import shutil, sys; sys.exit(shutil.which('uv'))")
    with pytest.raises(PackagingError, match=f"finding uv failed: {Path(sys.executable).parent}/uv"):
        bento._run([str(script)], "finding uv", {})


def test_the_build_tools_are_installed() -> None:
    bento.check_build_tools()


def test_missing_build_tools_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(PackagingError, match=rf"uv is not in {tmp_path}.* install the project again"):
        bento.check_build_tools()


def test_a_damaged_model_in_the_store_is_written_again(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    stored = champion_folder(served_recipe) / "model.tflite"
    stored.write_bytes(b"damaged")
    tag = bento.package(served_recipe, served_versions[1], served_versions[0])
    assert stored.read_bytes() == (served_versions[1] / "model.tflite").read_bytes()
    assert tag == str(bento.live(served_recipe))


def test_a_damaged_model_in_the_store_has_another_hash(own_bento_store: Path, served_recipe: Recipe) -> None:
    before = bento.live(served_recipe)
    (champion_folder(served_recipe) / "model.tflite").write_bytes(b"damaged")
    after = bento.live(served_recipe)
    assert before is not None
    assert after is not None
    assert after.hashes["champion"] != before.hashes["champion"]


def test_a_killed_build_is_built_again(
    own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]
) -> None:
    folder, model = bento_folder(own_bento_store, served_recipe), champion_folder(served_recipe) / "model.yaml"
    for path in (folder / "bento.yaml", folder / bento.BUILT, model):
        path.unlink()
    assert bento.package(served_recipe, served_versions[1], served_versions[0]) == str(bento.live(served_recipe))
    assert (folder / "bento.yaml").exists()
    assert model.exists()


def test_the_store_is_in_the_workspace(empty_store: Path) -> None:
    assert bento.home() == empty_store


def test_before_the_first_promotion_nothing_is_live(empty_store: Path, served_recipe: Recipe) -> None:
    assert bento.live(served_recipe) is None
    with pytest.raises(PackagingError, match="no Bento of cifar10 is live; run `mobilenet-pipeline run"):
        bento.served_models(served_recipe)


def test_a_damaged_artefact_is_refused(
    empty_store: Path, served_recipe: Recipe, served_versions: list[Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(served_versions[0], tmp_path / "damaged")
    (damaged / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"damaged/model.tflite is damaged: its SHA-256 is"):
        bento.package(served_recipe, damaged, None)
    assert bento.live(served_recipe) is None


def test_a_missing_artefact_is_refused(
    empty_store: Path, served_recipe: Recipe, served_versions: list[Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(served_versions[0], tmp_path / "version")
    (folder / "model.tflite").unlink()
    with pytest.raises(PackagingError, match=r"version/model.tflite .*missing"):
        bento.package(served_recipe, folder, None)


def test_an_artefact_of_another_model_is_refused(
    empty_store: Path, served_recipe: Recipe, served_versions: list[Path], tmp_path: Path
) -> None:
    other = shutil.copytree(served_versions[0], tmp_path / "other")
    document = json.loads((other / "metadata.json").read_text()) | {"registered_model": "digits-mobilenet"}
    (other / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(PackagingError, match="has a version of digits-mobilenet"):
        bento.package(served_recipe, other, None)


def test_a_check_does_not_touch_the_running_service(service: Service, bento_store: Path) -> None:
    before = service.ask("GET", "/metrics").text.count("requests_total{")
    bento.check(service.tag, 1000)
    assert service.ask("GET", "/metrics").text.count("requests_total{") >= before > 0


def test_a_check_needs_no_key(service: Service, bento_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "secret")
    bento.check(service.tag, 1000)


def test_a_bento_that_does_not_start_fails_its_check(own_bento_store: Path, served_recipe: Recipe) -> None:
    (champion_folder(served_recipe) / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(PackagingError, match=r"is damaged: its SHA-256 is"):
        bento.check(str(bento.live(served_recipe)), 1000)
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(own_bento_store) in command_line(process)
    ]


def test_a_slow_bento_fails_its_check(service: Service, bento_store: Path) -> None:
    with pytest.raises(PackagingError, match=r"its median latency is .* ms, and the recipe allows 0\.001 ms"):
        bento.check(service.tag, 0.001)
