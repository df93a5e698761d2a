import numpy as np
import pytest
from cifar10_archives import Images, binary_members, recipe_for, write_tar

from mobilenet_pipeline.data import ingest
from mobilenet_pipeline.data.dataset import FILES, DatasetError, changed_rows, open_dataset


@pytest.mark.usefixtures("configured_archive")
def test_an_open_dataset_leaves_its_images_on_disk(recipe, folder, images):
    ingest.ingest(recipe, folder)
    dataset = open_dataset(folder)
    assert isinstance(dataset.images, np.memmap)
    assert (dataset.images.shape, int(dataset.is_test.sum()), dataset.digest) == ((60, 32, 32, 3), 10, images.digest())
    assert dataset.class_names == recipe.data.class_names


def test_a_missing_folder_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"absent is not a dataset: it lacks images\.npy, .*ingest the recipe again"):
        open_dataset(tmp_path / "absent")


@pytest.mark.usefixtures("configured_archive")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(recipe, folder, name):
    ingest.ingest(recipe, folder)
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=f"it lacks {name};"):
        open_dataset(folder)


@pytest.mark.usefixtures("configured_archive")
@pytest.mark.parametrize("name", FILES)
def test_an_unreadable_file_is_refused(recipe, folder, name):
    ingest.ingest(recipe, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(DatasetError, match="cannot be read"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["images.npy", "manifest.parquet", "dataset.json"])
def test_files_of_two_ingestions_are_no_dataset(tmp_path, recipe, configured_archive, name):
    ingest.ingest(recipe, tmp_path / "one")
    write_tar(configured_archive, binary_members(Images(seed=5)))
    ingest.ingest(recipe_for(Images(seed=5), recipe), tmp_path / "two")
    (tmp_path / "two" / name).replace(tmp_path / "one" / name)
    with pytest.raises(DatasetError, match="do not belong together"):
        open_dataset(tmp_path / "one")


@pytest.mark.usefixtures("configured_archive")
def test_the_image_shape_is_that_of_every_image(recipe, folder):
    ingest.ingest(recipe, folder)
    assert open_dataset(folder).image_shape == (32, 32, 3)


def test_a_test_image_among_the_training_images_is_counted(recipe, folder, images, configured_archive):
    images.pixels[55] = images.pixels[3]
    write_tar(configured_archive, binary_members(images))
    ingest.ingest(recipe_for(images, recipe), folder)
    assert open_dataset(folder).overlap == 1


@pytest.mark.usefixtures("configured_archive")
def test_an_image_that_changed_on_disk_is_counted(recipe, folder):
    ingest.ingest(recipe, folder)
    assert changed_rows(folder) == 0
    changed = np.load(folder / "images.npy", mmap_mode="r+")
    changed[7, 0, 0, 0] += 1
    changed.flush()
    assert changed_rows(folder) == 1
