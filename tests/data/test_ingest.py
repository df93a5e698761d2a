"""Ingestion: the same images give the same bytes, other images are refused, failures leave the previous dataset."""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cifar10_archives import Images, python_members, recipe_for, with_data, write_tar
from PIL import Image

from mobilenet_pipeline import config
from mobilenet_pipeline.data import ingest
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.sources.base import IngestError, LabelledImages

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = os.environ.get("CIFAR10_ARCHIVE")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("configured_archive")
def test_row_i_of_the_manifest_describes_image_i(recipe, folder):
    ingest.ingest(recipe, folder)
    images, manifest = np.load(folder / "images.npy"), pd.read_parquet(folder / "manifest.parquet")
    assert manifest["hash"].tolist() == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert manifest["hash"].is_monotonic_increasing
    labels = np.load(folder / "labels.npy")
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, manifest["label"])
    assert manifest["class_name"].tolist() == [recipe.data.class_names[label] for label in manifest["label"]]


@pytest.mark.usefixtures("configured_archive")
def test_statistics_are_those_of_the_pixels(recipe, folder):
    ingest.ingest(recipe, folder)
    images, manifest = np.load(folder / "images.npy"), pd.read_parquet(folder / "manifest.parquet")
    for channel, name in enumerate("rgb"):
        np.testing.assert_allclose(manifest[f"mean_{name}"], images[..., channel].mean(axis=(1, 2)) / 255, rtol=1e-12)
        np.testing.assert_allclose(manifest[f"std_{name}"], images[..., channel].std(axis=(1, 2)) / 255, rtol=1e-12)
    assert np.array_equal(manifest["pixel_min"], images.min(axis=(1, 2, 3)))
    assert np.array_equal(manifest["pixel_max"], images.max(axis=(1, 2, 3)))


@pytest.mark.usefixtures("configured_archive")
def test_pixels_are_red_green_blue_in_rows(recipe, folder, images):
    ingest.ingest(recipe, folder)
    written = {image.tobytes() for image in np.load(folder / "images.npy")}
    assert written == {image.tobytes() for image in images.rgb()}


@pytest.mark.usefixtures("configured_archive")
def test_the_summary_names_no_source(recipe, folder, images):
    found = ingest.ingest(recipe, folder)
    assert found == {
        "digest": images.digest(),
        "rows": {"train": 50, "test": 10},
        "class_names": recipe.data.class_names,
        "image_shape": [32, 32, 3],
    }


def test_two_archives_of_the_same_images_give_the_same_bytes(tmp_path, recipe, images, configured_archive, monkeypatch):
    ingest.ingest(recipe, tmp_path / "one")
    repacked = write_tar(tmp_path / "other.tar.xz", python_members(images.shuffled()), "xz")
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(repacked))
    ingest.ingest(recipe, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def from_folder(recipe: config.Recipe, path: Path, **facts: object) -> config.Recipe:
    return with_data(recipe, source="images", path=path.name, **facts)


def write_pictures(root: Path, images: Images, names: list[str]) -> Path:
    for number, (picture, label) in enumerate(zip(images.rgb(), images.labels, strict=True)):
        path = root / ("train" if number < 50 else "test") / names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root


def test_folders_of_pictures_give_the_same_bytes_as_the_archive(tmp_path, recipe, images, configured_archive):
    ingest.ingest(recipe, tmp_path / "one")
    pictures = write_pictures(tmp_path / "pictures", images, recipe.data.class_names)
    ingest.ingest(from_folder(recipe, pictures), tmp_path / "two", tmp_path / "lists", home=tmp_path)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    files = pd.read_parquet(tmp_path / "lists" / "files.parquet")
    assert files["hash"].tolist() == pd.read_parquet(tmp_path / "one" / "manifest.parquet")["hash"].tolist()
    assert files["name"].str.startswith(("train/", "test/")).all()


@pytest.mark.usefixtures("configured_archive")
def test_dataset_and_lists_may_be_on_different_disks(recipe, folder, tmp_path, monkeypatch):
    def replace(source: Path, target: Path) -> None:
        if not target.is_relative_to(source.parents[1]):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        source.rename(target)

    monkeypatch.setattr(Path, "replace", replace)
    ingest.ingest(recipe, folder, tmp_path / "reports" / "ingestion")
    assert os.listdir(folder.parent) == ["cifar10"]
    assert os.listdir(tmp_path / "reports") == ["ingestion"]


@pytest.mark.usefixtures("configured_archive")
def test_lists_that_cannot_be_written_leave_the_previous_dataset(recipe, folder, tmp_path):
    ingest.ingest(recipe, folder)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    (tmp_path / "lists").write_text("a file where the folder should be")
    with pytest.raises(IngestError, match="the files that were there are unchanged"):
        ingest.ingest(recipe, folder, tmp_path / "lists")
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


@pytest.mark.usefixtures("configured_archive")
def test_what_a_killed_ingestion_left_is_removed(recipe, folder):
    for name in (".cifar10-ab12_xyz", ".cifar10-2-ab12_xyz", ".cifar100-ab12_xyz"):
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / "pixels").write_bytes(bytes(9))
    ingest.ingest(recipe, folder)
    assert sorted(os.listdir(folder.parent)) == [".cifar10-2-ab12_xyz", ".cifar100-ab12_xyz", "cifar10"]


def test_a_network_error_of_a_source_stays_one(recipe, folder, monkeypatch):
    def load() -> LabelledImages:
        raise TimeoutError("no answer")

    monkeypatch.setitem(ingest.LOADERS, "cifar10", load)
    with pytest.raises(TimeoutError, match="no answer"):
        ingest.ingest(recipe, folder)


def test_a_picture_that_is_left_out_is_listed(tmp_path, recipe, images):
    pictures = write_pictures(tmp_path / "pictures", images, recipe.data.class_names)
    (pictures / "train" / "cat" / "bad.png").write_bytes(b"no image")
    ingest.ingest(from_folder(recipe, pictures), tmp_path / "data", tmp_path / "lists", home=tmp_path)
    document = json.loads((tmp_path / "lists" / "problems.json").read_text())
    assert (document["found"], document["kept"], document["kinds"]) == (61, 60, {"not_an_image": 1})
    assert document["problems"][0]["name"] == "train/cat/bad.png"


def test_a_changed_picture_is_refused_and_the_dataset_stays(tmp_path, recipe, images):
    pictures = write_pictures(tmp_path / "pictures", images, recipe.data.class_names)
    ingest.ingest(from_folder(recipe, pictures), tmp_path / "data", tmp_path / "lists", home=tmp_path)
    before = contents(tmp_path / "data")
    Image.new("RGB", (32, 32), "red").save(pictures / "train" / "airplane" / "0.png")
    with pytest.raises(
        IngestError, match=r"pictures does not hold the images of recipe cifar10: .*to use these images"
    ):
        ingest.ingest(from_folder(recipe, pictures), tmp_path / "data", tmp_path / "lists", home=tmp_path)
    assert contents(tmp_path / "data") == before


def test_a_thousand_classes_have_labels_of_their_own(tmp_path, recipe):
    names = [f"class {number:04}" for number in range(1000)]
    rng = np.random.default_rng(0)
    source = LabelledImages(
        rng.integers(0, 256, (1000, 4, 4, 3), np.uint8), np.arange(1000), np.zeros(1000, bool), "test"
    )
    order, manifest = ingest.arrange(source, names)
    assert np.array_equal(manifest["label"], source.labels[order])
    assert manifest["class_name"].tolist() == [names[label] for label in source.labels[order]]


def test_a_source_without_a_path_is_a_sentence(tmp_path, recipe):
    with pytest.raises(IngestError, match=r"recipes\.cifar10\.data\.path is empty"):
        ingest.ingest(with_data(recipe, source="images"), tmp_path / "data")


def test_other_images_are_refused_with_both_digests(recipe, folder, configured_archive, images):
    with pytest.raises(IngestError) as refused:
        ingest.ingest(recipe_for(Images(seed=5), recipe), folder)
    for part in (str(configured_archive), images.digest(), Images(seed=5).digest(), "CIFAR10_ARCHIVE", "params.yaml"):
        assert part in str(refused.value)
    assert not folder.exists()


@pytest.mark.usefixtures("configured_archive")
def test_other_row_counts_are_refused(recipe, folder):
    with pytest.raises(
        IngestError, match=r"with 50 train and 10 test rows, expected .* with 49 train and 11 test rows"
    ):
        ingest.ingest(with_data(recipe, train_rows=49, test_rows=11), folder)


@pytest.mark.usefixtures("configured_archive")
def test_a_recipe_without_a_digest_is_told_the_one_to_set(recipe, folder, images):
    with pytest.raises(IngestError, match=rf"recipes\.cifar10\.data\.digest is empty; .* set it to {images.digest()}"):
        ingest.ingest(with_data(recipe, digest=""), folder)


@pytest.mark.usefixtures("configured_archive")
def test_a_label_without_a_class_name_is_refused(recipe, folder):
    with pytest.raises(IngestError, match=r"row 9 has label 9, but the recipe names 9 classes"):
        ingest.ingest(with_data(recipe, class_names=recipe.data.class_names[:9]), folder)


@pytest.fixture
def small_disk():
    """No file may grow beyond 150 kB: writing the images fails halfway, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("configured_archive")
def test_a_full_disk_leaves_the_previous_dataset(recipe, folder, small_disk):
    ingest.ingest(recipe, folder)
    before = contents(folder)
    small_disk()
    with pytest.raises(IngestError, match=r"could not be written .* the files that were there are unchanged"):
        ingest.ingest(recipe, folder)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["cifar10"]


def test_a_refused_archive_leaves_the_previous_dataset(recipe, folder, configured_archive):
    ingest.ingest(recipe, folder)
    before = contents(folder)
    configured_archive.write_bytes(configured_archive.read_bytes()[:10_000])
    with pytest.raises(IngestError, match="not a complete tar archive"):
        ingest.ingest(recipe, folder)
    assert contents(folder) == before


def test_dvc_keeps_the_dataset_until_the_next_one_is_complete(workspace):
    shutil.copytree(ROOT / "src", workspace / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", workspace)

    def dvc(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    dvc("init", "--no-scm", "--quiet")
    assert dvc("repro", "ingest@digits").returncode == 0
    before = contents(workspace / "data/digits")
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("d76fb597", "00000000"))
    failed = dvc("repro", "ingest@digits")
    assert (failed.returncode, "does not hold the images of recipe digits" in failed.stderr) == (255, True)
    assert contents(workspace / "data/digits") == before


@pytest.mark.usefixtures("configured_archive")
def test_other_files_in_the_folder_stay(recipe, folder):
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text("/images.npy\n")
    ingest.ingest(recipe, folder)
    assert (folder / ".gitignore").read_text() == "/images.npy\n"


def test_the_digits_are_those_of_their_recipe(tmp_path):
    digits = config.load_recipe("digits", ROOT / "params.yaml")
    found = ingest.ingest(digits, tmp_path / "digits")
    assert (found["digest"], found["rows"]) == (digits.data.digest, {"train": 1437, "test": 360})


@pytest.mark.skipif(not ARCHIVE, reason="CIFAR10_ARCHIVE is not set: the real 60,000 images are not ingested")
def test_the_real_archive_is_that_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(ARCHIVE))
    recipe = config.load_recipe("cifar10", ROOT / "params.yaml")
    found = ingest.ingest(recipe, tmp_path / "cifar10")
    assert (found["digest"], found["rows"]) == (recipe.data.digest, {"train": 50_000, "test": 10_000})
    assert len(open_dataset(tmp_path / "cifar10").images) == 60_000
