"""The dataset on a machine of a cluster."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.cluster import files
from mobilenet_pipeline.data.dataset import DatasetError, open_dataset
from mobilenet_pipeline.data.ingest import ingest

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


class Driver:
    """What the driver has; `asked` counts how often a machine fetched it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0

    def fetch(self) -> Iterable[tuple[str, Iterable[bytes]]]:
        self.asked += 1
        return files.parts(lambda name, index: files.part(self.folder, name, index))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver") / "digits"
    ingest(config.load_recipe("digits", PARAMS), folder)
    return folder


@pytest.fixture
def driver(digits: Path) -> Driver:
    return Driver(digits)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_shared_path_is_used_where_it_is(driver):
    dataset = files.at_hand(driver.folder, open_dataset(driver.folder).digest, driver.fetch)
    assert (driver.asked, dataset.images.filename) == (0, driver.folder / "images.npy")


def test_a_machine_without_the_path_gets_the_same_dataset(driver, tmp_path):
    original = open_dataset(driver.folder)
    dataset = files.at_hand(tmp_path / "nothing", original.digest, driver.fetch)
    assert np.array_equal(dataset.images, original.images)


def test_a_machine_fetches_once(driver, tmp_path):
    digest = open_dataset(driver.folder).digest
    for _ in range(2):
        files.at_hand(tmp_path / "nothing", digest, driver.fetch)
    assert driver.asked == 1


def test_a_path_with_another_dataset_is_not_used(driver, tmp_path):
    shutil.copytree(driver.folder, other := tmp_path / "other")
    document = (other / "dataset.json").read_text()
    digest = open_dataset(driver.folder).digest
    (other / "dataset.json").write_text(document.replace(digest, "0" * 64))
    files.at_hand(other, digest, driver.fetch)
    assert driver.asked == 1


def test_changed_pixels_are_refused(driver, tmp_path):
    shutil.copytree(driver.folder, other := tmp_path / "other")
    images = np.load(other / "images.npy", mmap_mode="r+")
    images[3] = 255 - images[3]
    images.flush()
    with pytest.raises(DatasetError, match="are not those that were ingested"):
        files.at_hand(other, open_dataset(driver.folder).digest, driver.fetch)


@pytest.mark.parametrize("name", ["labels.npy", "images.npy"])
def test_a_damaged_copy_is_fetched_again(driver, tmp_path, machine, name):
    digest = open_dataset(driver.folder).digest
    files.at_hand(tmp_path / "nothing", digest, driver.fetch)
    (copy,) = machine.glob(f"mobilenet-pipeline-*/{digest}")
    os.truncate(copy / name, 100)
    dataset = files.at_hand(tmp_path / "nothing", digest, driver.fetch)
    assert (driver.asked, dataset.digest) == (2, digest)


def test_a_full_disk_is_named_with_the_machine_and_nothing_is_left(driver, tmp_path, machine):
    digest = open_dataset(driver.folder).digest

    def fetch() -> Iterable[tuple[str, Iterable[bytes]]]:
        yield "images.npy", [b"1"]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(files.MachineError, match=rf"{digest} on {os.uname().nodename} \(No space left .*TMPDIR"):
        files.at_hand(tmp_path / "nothing", digest, fetch)
    assert not [*machine.glob(f"mobilenet-pipeline-*/{digest}")]


def test_another_user_s_folder_is_refused(driver, tmp_path, machine):
    (machine / f"mobilenet-pipeline-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(files.MachineError, match="belongs to another user"):
        files.at_hand(tmp_path / "nothing", "d", driver.fetch)


def test_parts_are_small_and_make_the_whole_file(driver, monkeypatch):
    monkeypatch.setattr(files, "PART", 1000)
    parts = {name: list(content) for name, content in driver.fetch()}
    assert max(map(len, parts["images.npy"])) == 1000
    assert b"".join(parts["images.npy"]) == (driver.folder / "images.npy").read_bytes()


def test_a_dataset_that_was_not_used_for_long_is_removed(driver, tmp_path, machine):
    digest = open_dataset(driver.folder).digest
    files.at_hand(tmp_path / "nothing", digest, driver.fetch)
    (kept,) = machine.glob(f"mobilenet-pipeline-*/{digest}")
    old = kept.with_name("old")
    old.mkdir()
    (mark := kept.with_name("old.checked")).touch()
    (left := kept.with_name("left by a killed worker")).mkdir()
    for path in (mark, left):
        os.utime(path, (0, 0))
    files.at_hand(tmp_path / "nothing", digest, driver.fetch)
    assert [path.exists() for path in (kept, old, mark, left)] == [True, False, False, False]
