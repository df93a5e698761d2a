"""`init`: what it writes is a recipe that ingestion accepts, and an error leaves params.yaml as it was."""

import difflib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from picture_files import classes, pixels, put
from PIL import Image

from mobilenet_pipeline import cli, config
from mobilenet_pipeline.data import ingest
from mobilenet_pipeline.data.statistics import content_hashes
from mobilenet_pipeline.stages import init
from mobilenet_pipeline.workspace.paths import data_folder

ROOT = Path(__file__).resolve().parents[2]
PARAMS = Path("params.yaml")


@pytest.fixture
def pictures(workspace: Path) -> Path:
    """Two classes, one of them three times as large as the other, in the current workspace."""
    return classes(workspace / "pictures", {"a cat": 30, "it's: a dog": 10})


def run(*words: str) -> int:
    return cli.main(["init", *words])


@pytest.mark.usefixtures("pictures")
def test_the_recipe_is_one_that_ingestion_accepts():
    assert run("mine", "--images", "pictures") == 0
    recipe = config.load_recipe("mine")
    dataset = ingest.ingest(recipe, data_folder(recipe))
    rows = {"train": recipe.data.train_rows, "test": recipe.data.test_rows}
    assert (dataset["digest"], dataset["rows"], sum(rows.values())) == (recipe.data.digest, rows, 40)
    assert (recipe.data.path, recipe.data.image_size, recipe.data.class_names) == (
        "pictures",
        32,
        ["a cat", "it's: a dog"],
    )


@pytest.mark.usefixtures("pictures")
def test_all_other_bytes_of_the_file_stay():
    before = PARAMS.read_bytes()
    run("mine", "--images", "pictures")
    assert PARAMS.read_bytes().startswith(before)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_file_from_windows_keeps_its_line_ends(ending):
    PARAMS.write_bytes(b"\r\n".join(PARAMS.read_bytes().splitlines()) + ending.replace(b"\n", b"\r\n"))
    before = PARAMS.read_bytes()
    run("mine", "--images", "pictures")
    assert PARAMS.read_bytes().startswith(before)
    assert PARAMS.read_bytes().count(b"\n") == PARAMS.read_bytes().count(b"\r\n")


@pytest.mark.usefixtures("pictures")
def test_the_imbalance_of_the_classes_is_within_the_tolerance():
    run("mine", "--images", "pictures")
    recipe = config.load_recipe("mine")
    ingest.ingest(recipe, data_folder(recipe))
    manifest = pd.read_parquet(data_folder(recipe) / "manifest.parquet")
    shares = manifest.groupby("split")["class_name"].value_counts(normalize=True)
    assert 0 <= recipe.data.class_balance_tolerance - abs(shares - 0.5).max() < 0.025


@pytest.mark.usefixtures("pictures")
def test_a_dry_run_prints_the_recipe_and_changes_nothing(capsys):
    before = PARAMS.read_bytes()
    assert run("mine", "--images", "pictures", "--dry-run") == 0
    assert "  mine:\n    registered_model: mine-mobilenet\n" in capsys.readouterr().out
    assert PARAMS.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["digits", "--images", "pictures"], "params.yaml has a recipe digits already; choose another name"),
        (["a/b", "--images", "pictures"], "'a/b' is no name of a recipe"),
        (["12", "--images", "pictures"], "'12' is no name of a recipe"),
        (["2026-11-30", "--images", "pictures"], "'2026-11-30' is no name of a recipe"),
        (["null", "--images", "pictures"], "'null' is no name of a recipe, because YAML reads it as None"),
        (["mine", "--images", "absent"], "absent does not exist; give a folder for each class"),
        (["mine", "--images", "pictures/a cat"], "has no images with a class"),
        (["mine", "--images", "params.yaml"], "params.yaml is"),
        (["mine", "--images", "pictures", "--cpu-minutes", "0"], "--cpu-minutes is 0; give a number above 0"),
        (["mine", "--images", "pictures", "--cpu-minutes", "inf"], "--cpu-minutes is inf; give a number above 0"),
        (["mine", "--images", "pictures", "--cpu-minutes", "nan"], "--cpu-minutes is nan; give a number above 0"),
        (["mine", "--images", "pictures", "--size", "500"], "--size is 500; give a number of pixels from 28 to 224"),
        (["mine"], "--images is missing; give a folder"),
        (["mine", "--update"], "no recipe 'mine'; there are"),
        (["digits", "--update"], "recipe digits has the source digits; --update is for recipes with the source images"),
        (["digits", "--update", "--size", "64"], "--size does not go with --update"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_a_mistake_is_a_sentence_and_changes_nothing(words, sentence, capsys):
    before = PARAMS.read_bytes()
    assert run(*words) == 1
    assert sentence in capsys.readouterr().err
    assert PARAMS.read_bytes() == before


def test_one_class_is_too_few(workspace, capsys):
    classes(workspace / "pictures", {"cat": 5, "dog": 1})
    assert run("mine", "--images", "pictures") == 1
    assert "pictures has 1 class with enough images; dog: the class has 1 image" in capsys.readouterr().err


@pytest.mark.usefixtures("pictures")
def test_a_file_that_ends_with_another_section_is_not_changed(capsys):
    PARAMS.write_text(PARAMS.read_text() + "other:\n  key: 1\n")
    before = PARAMS.read_bytes()
    assert run("mine", "--images", "pictures") == 1
    assert "params.yaml was not changed" in capsys.readouterr().err
    assert PARAMS.read_bytes() == before


def content_hash(path: Path) -> str:
    return content_hashes(np.asarray(Image.open(path))[None])[0]


def updated(pictures: Path) -> config.Recipe:
    """Return the recipe `mine` after 20 more pictures of a cat and ten of a class fox came in."""
    run("mine", "--images", "pictures")
    PARAMS.write_text(
        PARAMS.read_text().replace(
            "    promotion: automatic\n    data:\n      source: images",
            "    promotion: manual # ask\n    data:\n      source: images",
        )
    )
    for number in range(30):
        put(pictures / ("a cat" if number < 20 else "fox") / f"more{number}.png", 500 + number)
    assert run("mine", "--update") == 0
    return config.load_recipe("mine")


def test_an_updated_recipe_is_one_that_ingestion_accepts(pictures):
    recipe = updated(pictures)
    assert ingest.ingest(recipe, data_folder(recipe))["digest"] == recipe.data.digest
    assert recipe.data.train_rows + recipe.data.test_rows == 60


def test_an_update_keeps_the_classes_and_names_others(pictures, capsys):
    assert updated(pictures).data.class_names == ["a cat", "it's: a dog"]
    assert "! not in recipe: fox: 10 images of this class" in capsys.readouterr().out


def test_an_update_names_training_images_that_are_for_testing_now(pictures, capsys):
    recipe = updated(pictures)
    ingest.ingest(recipe, data_folder(recipe))
    for name in pd.read_parquet(data_folder(recipe) / "manifest.parquet").query("split == 'test'")["hash"]:
        for path in (path for path in pictures.rglob("*.png") if content_hash(path) == name):
            path.unlink()
    assert run("mine", "--update") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "2 that were for training are for testing now" in said


def test_an_update_leaves_all_other_lines_of_the_file(pictures):
    recipe = updated(pictures)
    lines = PARAMS.read_text().splitlines()
    assert "    promotion: manual # ask" in lines
    before = (ROOT / PARAMS).read_text().splitlines()
    assert lines[: len(before)] == before
    assert recipe.promotion == "manual"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_update_leaves_every_byte_of_the_other_lines(pictures, end):
    run("mine", "--images", "pictures")
    text = PARAMS.read_text().replace("as_good_and_lighter:\n", "as_good_and_lighter: # as we like it\n")
    lines = [("  " + line if line.startswith("      - ") else line) for line in text.splitlines()]
    lines = [line.replace(": null", ": ~", 1) for line in lines]
    PARAMS.write_bytes(end.join([*lines, ""]).encode())
    put(pictures / "a cat" / "more.png", 500)
    assert run("mine", "--update") == 0
    after = PARAMS.read_bytes().decode().split(end)
    changed = [line[2:].strip() for line in difflib.ndiff([*lines, ""], after) if line[:2] in ("- ", "+ ")]
    assert changed
    assert all(line.startswith(("- 0.", "digest: ", "train_rows: ", "test_rows: ")) for line in changed)
    assert config.load_recipe("mine").data.train_rows + config.load_recipe("mine").data.test_rows == 41


def test_an_update_of_unchanged_images_changes_nothing(pictures, capsys):
    updated(pictures)
    before = PARAMS.read_bytes()
    assert run("mine", "--update") == 0
    assert "none" in capsys.readouterr().out
    assert PARAMS.read_bytes() == before


def test_an_update_names_the_limits_that_the_images_exceed_and_leaves_them(pictures, capsys):
    run("mine", "--images", "pictures")
    (pictures / "a cat" / "broken.png").write_bytes(b"no image")
    assert run("mine", "--update") == 0
    assert "now 0.024, above the limit 0" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert config.load_recipe("mine").data.excluded_share == 0


def test_images_that_moved_are_found_by_an_update(pictures):
    run("mine", "--images", "pictures")
    pictures.rename(pictures.with_name("moved"))
    assert run("mine", "--update", "--images", "moved") == 0
    assert config.load_recipe("mine").data.path == "moved"


def test_an_update_without_images_of_a_class_changes_nothing(pictures, capsys):
    updated(pictures)
    before = PARAMS.read_bytes()
    shutil.rmtree(pictures / "a cat")
    assert run("mine", "--update") == 1
    assert "a cat" in capsys.readouterr().err
    assert PARAMS.read_bytes() == before


def test_problems_are_printed_and_the_limit_is_above_what_was_found(pictures, capsys):
    (pictures / "a cat" / "broken.png").write_bytes(b"no image")
    assert run("mine", "--images", "pictures") == 0
    assert "! not an image: a cat/broken.png: This is not an image" in capsys.readouterr().out
    assert 1 / 41 < config.load_recipe("mine").data.excluded_share < 0.05


def test_near_duplicates_between_the_splits_are_counted(workspace, capsys):
    classes(workspace / "pictures", {f"{split}/{name}": 2 for split in ("train", "test") for name in "ab"})
    for number, name in enumerate("ab"):
        smooth = Image.fromarray(pixels(number, 4)).resize((32, 32))
        smooth.save(workspace / "pictures" / "train" / name / "smooth.png")
        smooth.point(lambda value: value * 0.9).save(workspace / "pictures" / "test" / name / "darker.png")
    run("mine", "--images", "pictures")
    assert "2 of 6 test images look like a training image" in capsys.readouterr().out


@pytest.mark.usefixtures("pictures")
def test_imagenet_weights_are_proposed_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "mobilenet_5_0_224_tf_no_top.h5").touch()
    run("mine", "--images", "pictures")
    pretrained = config.load_recipe("mine").candidates["pretrained"]
    assert (pretrained.weights, pretrained.alpha) == ("imagenet", 0.5)


@pytest.mark.usefixtures("pictures")
def test_without_imagenet_weights_the_bundled_ones_are_proposed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMAGENET_WEIGHTS_DIR", str(tmp_path))
    run("mine", "--images", "pictures")
    assert config.load_recipe("mine").candidates["pretrained"].weights == "bundled"
    assert "since no ImageNet weights" in " ".join(capsys.readouterr().out.split())


def test_validation_images_of_the_source_are_announced_as_training_images(workspace, capsys):
    for number, name in enumerate(f"{split}/{label}" for split in ("train", "val", "test") for label in "ab"):
        for copy in range(3):
            put(workspace / "pictures" / name / f"{copy}.png", 10 * number + copy)
    run("mine", "--images", "pictures")
    assert "ready-made validation images are training images" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_name_of_the_model_is_free_and_fits_bentoml(workspace):
    assert init.check_name("Digits") == "digits-mobilenet-2"
    assert init.check_name("My_Photos") == "my-photos-mobilenet"


def test_a_path_outside_the_workspace_is_absolute(workspace):
    assert init.relative(Path("pictures")) == "pictures"
    assert init.relative(workspace / "pictures") == "pictures"
    assert init.relative(Path("/elsewhere/pictures")) == "/elsewhere/pictures"
