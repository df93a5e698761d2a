"""From files to rows of a dataset: every image that is left out is named, and nothing depends on names and order."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from picture_files import classes, encoded, pixels, put
from PIL import Image

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images import decoding
from mobilenet_pipeline.data.sources.images.look import opened
from mobilenet_pipeline.data.sources.images.settle import Settled, hold_out_test, settle


def settled(root: Path, names: list[str] | None = None, share: float | None = 0.25, workers: int = 1) -> Settled:
    with opened(root) as found:
        decoded = decoding.decode_all(found, 32, "crop", None, workers, lambda _: None)
        return settle(found, decoded, names, share, 0)


def problems(found: Settled) -> dict[str, str]:
    return {problem.kind: problem.name for problem in found.problems}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return classes(tmp_path / "pictures", {"cat": 8, "dog": 8})


def test_every_picture_is_a_row(root):
    found = settled(root)
    assert (len(found.rows), found.found, found.problems) == (16, 16, [])
    assert found.rows.groupby(["label", "split"]).ngroups == 4


def table(count: int, share: float = 0.2, groups: int = 0, seed: int = 0) -> pd.Series:
    """Return which of the images hash0 … are for testing, of two classes in turn, by hash."""
    group = [f"g{number % groups}" if groups else "" for number in range(count)]
    label = ["cat" if number % 2 else "dog" for number in range(count)]
    rows = pd.DataFrame({"hash": [f"hash{number}" for number in range(count)], "label": label, "group": group})
    return pd.Series(hold_out_test(rows, share, seed), rows["hash"])


def test_about_the_share_is_held_out_for_testing():
    assert table(10_000).mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("groups", [0, 40])
def test_an_image_stays_on_its_side_when_images_are_added(groups):
    before = table(200, groups=groups)
    assert table(1_000, groups=groups)[before.index].equals(before)


def test_another_seed_holds_out_others():
    assert not table(200, seed=1).equals(table(200))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_every_class_has_an_image_for_testing_and_two_for_training(share):
    is_test = table(12, share).to_numpy()
    for members in (is_test[::2], is_test[1::2]):
        assert members.sum() >= 1
        assert (~members).sum() >= 2


def test_a_class_that_cannot_be_on_both_sides_is_a_sentence():
    rows = pd.DataFrame({"hash": list("abc"), "label": "cat", "group": ["one", "one", "two"]})
    with pytest.raises(IngestError, match="cat has 2 groups of images; it needs 3, to train, validate and test"):
        hold_out_test(rows, 0.2, 0)


def test_other_names_of_the_files_give_the_same_split(root):
    before = settled(root).rows.set_index("hash")["split"].to_dict()
    for number, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"z{number}.png"))
    assert settled(root).rows.set_index("hash")["split"].to_dict() == before


def test_files_that_cannot_be_used_are_named_and_left_out(root):
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "text.jpg").write_bytes(b"no image at all")
    (root / "cat" / "cut.png").write_bytes(encoded(50)[:900])
    put(root / "cat" / "dot.png", 51, side=1)
    Image.new("RGB", (40, 40), "red").save(root / "cat" / "red.png")
    Image.new("1", (6000, 5000)).save(root / "cat" / "huge.png")
    found = settled(root)
    assert problems(found) == {
        "empty": "cat/empty.png",
        "not_an_image": "cat/text.jpg",
        "damaged": "cat/cut.png",
        "tiny": "cat/dot.png",
        "blank": "cat/red.png",
        "too_many_pixels": "cat/huge.png",
    }
    assert (len(found.rows), found.found) == (16, 22)


def test_odd_files_are_kept_and_named(root):
    put(root / "cat" / "wrong.jpg", 60)
    put(root / "cat" / "print.jpg", 61, kind="JPEG", mode="CMYK")
    frames = [Image.fromarray(pixels(number)) for number in (62, 63)]
    frames[0].save(root / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    grey = np.random.default_rng(0).integers(0, 65536, (32, 32)).astype(np.uint16)
    Image.fromarray(grey).save(root / "cat" / "deep.png")
    found = settled(root)
    assert problems(found) == {
        "mislabelled": "cat/wrong.jpg",
        "cmyk": "cat/print.jpg",
        "animated": "cat/moving.gif",
        "sixteen_bit": "cat/deep.png",
    }
    assert len(found.rows) == 20


def test_of_the_same_pixels_one_file_is_kept(root):
    put(root / "cat" / "copy.bmp", 1, kind="BMP")
    found = settled(root)
    (line,) = found.problems
    assert (line.name, line.kind) == ("cat/copy.bmp", "duplicate")
    assert line.sentence == "it has the pixels of cat/1.png, and is left out"
    assert len(found.rows) == 16


@pytest.mark.parametrize(
    ("groups", "expected"), [(("anna", "bert"), "anna"), (("bert", "anna"), "anna"), (("", "bert"), "bert")]
)
def test_the_group_of_the_same_pixels_does_not_depend_on_names(tmp_path, groups, expected):
    rows = ["path,label,group"]
    for number in range(12):
        put(tmp_path / f"{number}.png", number)
        rows.append(f"{number}.png,{'cat' if number % 2 else 'dog'},g{number}")
    for name, group in zip("ab", groups, strict=True):
        put(tmp_path / f"{name}.png", 99)
        rows.append(f"{name}.png,cat,{group}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = settled(tmp_path / "list.csv").rows
    assert len(found) == 13
    assert found[found["name"].isin(["a.png", "b.png"])]["group"].tolist() == [expected]


def test_the_same_pixels_in_two_classes_are_left_out_in_both(root):
    put(root / "dog" / "copy.png", 1)
    found = settled(root)
    assert [(line.name, line.kind) for line in found.problems] == [
        ("cat/1.png", "two_labels"),
        ("dog/copy.png", "two_labels"),
    ]
    assert len(found.rows) == 15


def test_a_training_image_that_is_a_test_image_is_left_out(tmp_path):
    classes(tmp_path, {"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2})
    put(tmp_path / "train" / "cat" / "leak.png", 9)
    found = settled(tmp_path)
    (line,) = found.problems
    assert (line.name, line.kind) == ("train/cat/leak.png", "across_splits")
    assert "of test/cat/9.png of the test images" in line.sentence


def test_ready_made_validation_images_are_training_images(tmp_path):
    classes(tmp_path, {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in ("cat", "dog")})
    assert settled(tmp_path).rows["split"].value_counts().to_dict() == {"train": 8, "test": 4}


def test_a_class_with_one_picture_is_left_out_and_named(root):
    put(root / "fox" / "1.png", 70)
    found = settled(root)
    (line,) = found.problems
    assert (line.name, line.kind) == ("fox", "small_class")
    assert line.sentence.startswith("the class has 1 image; it needs 3")
    assert {*found.rows["label"]} == {"cat", "dog"}


def test_classes_that_differ_in_capitals_only_are_named(root):
    classes(root, {"Cat": 0})
    for number in range(4):
        put(root / "Cat" / f"{number}.png", 80 + number)
    found = settled(root)
    assert problems(found) == {"case": "Cat, cat"}
    assert {*found.rows["label"]} == {"Cat", "cat", "dog"}


def test_a_class_that_the_recipe_lacks_is_left_out_and_named(root):
    found = settled(root, ["dog"])
    assert [(line.name, line.kind) for line in found.problems] == [("cat", "not_in_recipe")]
    assert {*found.rows["label"]} == {"dog"}


def test_no_group_is_in_train_and_test(tmp_path):
    rows = ["path,label,group"]
    for number in range(60):
        put(tmp_path / f"{number}.png", number)
        rows.append(f"{number}.png,{'cat' if number % 2 else 'dog'},patient {number // 6}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = settled(tmp_path / "list.csv").rows
    assert found.groupby("group")["split"].nunique().tolist() == [1] * 10
    assert {*found["split"]} == {"train", "test"}


def test_no_test_images_and_no_share_is_a_sentence(root):
    with pytest.raises(IngestError, match=r"no test split of their own; set data\.test_share"):
        settled(root, ["cat", "dog"], share=None)


def test_no_image_that_can_be_used_is_a_sentence(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    with pytest.raises(IngestError, match=r"no image is left: cat/a\.png: The file is empty"):
        settled(tmp_path)


def test_a_killed_worker_is_a_sentence(root, monkeypatch):
    monkeypatch.setattr(decoding, "MANY", 1)
    monkeypatch.setattr(decoding, "end_with_parent", os.abort)
    with pytest.raises(IngestError, match="a process that decodes images was killed"):
        settled(root, workers=2)


@pytest.mark.parametrize("many", [1, 4_000])
def test_several_workers_give_what_one_gives(many, root, monkeypatch):
    alone = settled(root).rows
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 5)
    monkeypatch.setattr(decoding, "MANY", many)  # processes, or threads
    assert settled(root, workers=2).rows.equals(alone)
