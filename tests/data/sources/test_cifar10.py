import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from cifar10_archives import binary_members, python2_pickle, python_members, write_tar

from mobilenet_pipeline.data.sources import cifar10, download
from mobilenet_pipeline.data.sources.base import IngestError

MAKERS = {"binary": binary_members, "python": python_members}
LAST = {"binary": "cifar-10-batches-bin/test_batch.bin", "python": "cifar-10-batches-py/test_batch"}


def refusal(path) -> str:
    with pytest.raises(IngestError) as refused:
        cifar10.read_archive(path)
    assert str(path) in str(refused.value)
    assert "CIFAR10_ARCHIVE" in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("version", MAKERS)
@pytest.mark.parametrize("compression", ["gz", "xz", ""])
def test_an_archive_is_recognised_by_its_content(tmp_path, images, version, compression):
    path = write_tar(tmp_path / "download.bin", MAKERS[version](images), compression)
    found = cifar10.read_archive(path)
    assert np.array_equal(found.images, images.rgb())
    assert np.array_equal(found.labels, images.labels)
    assert found.is_test.tolist() == [False] * 50 + [True] * 10


def test_a_batch_pickled_by_python_3_is_read(tmp_path, images):
    pixels, labels = images.batches()[5]
    content = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
    found = cifar10.read_archive(write_tar(tmp_path / "a.tar", {**python_members(images), LAST["python"]: content}, ""))
    assert np.array_equal(found.images, images.rgb())


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "photo.tar.gz").write_bytes(b"not an archive at all" * 100)
    assert "is not a complete tar archive" in refusal(tmp_path / "photo.tar.gz")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_archive_is_refused_by_name(archive, share):
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    assert "is not a complete tar archive" in refusal(archive)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.tar.gz").touch()
    assert "is not a complete tar archive" in refusal(tmp_path / "empty.tar.gz")


@pytest.mark.parametrize("version", MAKERS)
def test_a_missing_batch_is_named(tmp_path, images, version):
    members = MAKERS[version](images)
    del members[LAST[version]]
    assert "the archive lacks test_batch" in refusal(write_tar(tmp_path / "a.tar.gz", members))


def test_a_batch_with_an_incomplete_row_is_refused(tmp_path, images):
    members = binary_members(images)
    members[LAST["binary"]] = members[LAST["binary"]][:-1]
    assert "has 30,729 bytes, not a multiple of 3,073" in refusal(write_tar(tmp_path / "a.tar.gz", members))


@pytest.mark.parametrize("name", ["../test_batch.bin", "/etc/test_batch.bin", "a/../../b"])
def test_a_member_outside_the_archive_is_not_written(tmp_path, images, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = write_tar(folder / "a.tar.gz", {**binary_members(images), name: b"escaped"})
    assert f"member {name!r} points outside the archive" in refusal(path)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["inside", "a.tar.gz"]


def test_a_link_instead_of_a_batch_is_refused(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    assert "is a link, too large, or a duplicate" in refusal(tmp_path / "a.tar")


def test_a_duplicate_batch_is_refused(tmp_path, images):
    members = {**binary_members(images), "other/test_batch.bin": bytes(3073)}
    assert "'other/test_batch.bin'" in refusal(write_tar(tmp_path / "a.tar.gz", members))


def test_a_batch_that_is_too_large_is_refused(tmp_path, images, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_BATCH_BYTES", 30_000)
    assert "(30,730 bytes) is a link, too large" in refusal(write_tar(tmp_path / "a.tar.gz", binary_members(images)))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, images, protocol):
    content = pickle.dumps({b"data": Malicious(str(tmp_path / "harm")), b"labels": [1]}, protocol=protocol)
    path = write_tar(tmp_path / "a.tar.gz", {**python_members(images), LAST["python"]: content})
    assert "asks for posix.mkdir, which no CIFAR-10 batch needs; it was not run" in refusal(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {b"labels": [1]},
        {b"data": b"bytes", b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.float64), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [1.5]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [256]},
        {b"data": np.zeros((2, 1536), np.uint8), b"labels": [1, 2]},
        [],
    ],
    ids=[
        "no data",
        "no array",
        "floats",
        "labels too many",
        "labels no integers",
        "label 256",
        "other shape",
        "no dict",
    ],
)
def test_a_pickle_that_is_no_batch_is_refused(tmp_path, images, batch):
    members = {**python_members(images), LAST["python"]: pickle.dumps(batch, protocol=2)}
    assert "'cifar-10-batches-py/test_batch' is not a CIFAR-10 python batch" in refusal(
        write_tar(tmp_path / "a", members)
    )


def test_a_truncated_pickle_is_refused(tmp_path, images):
    content = python2_pickle(*images.batches()[5])[:5000]
    path = write_tar(tmp_path / "a.tar.gz", {**python_members(images), LAST["python"]: content})
    assert "is not a CIFAR-10 python batch" in refusal(path)


def test_a_missing_file_of_the_archive_variable_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(tmp_path / "absent.tar.gz"))
    with pytest.raises(IngestError, match=r"absent\.tar\.gz: the file of CIFAR10_ARCHIVE does not exist"):
        cifar10.load_cifar10()


@pytest.mark.parametrize("place", [str, lambda path: path.as_uri()], ids=["path", "file URL"])
def test_the_archive_variable_takes_a_path_and_a_file_url(archive, monkeypatch, place):
    monkeypatch.setenv("CIFAR10_ARCHIVE", place(archive))
    assert cifar10.find_archive() == archive


def test_the_archive_variable_takes_a_web_address(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    monkeypatch.setenv("CIFAR10_ARCHIVE", server.url)
    assert len(cifar10.load_cifar10().labels) == 60


def test_the_official_address_is_used_without_the_variable(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    monkeypatch.setattr(download, "OFFICIAL_URL", server.url)
    assert cifar10.find_archive() == download.cache_folder() / "cifar-10-binary.tar.gz"


def test_a_damaged_download_is_deleted_and_downloaded_again(server, archive, monkeypatch):
    server.content = b"<html>We are moving house</html>"
    monkeypatch.setenv("CIFAR10_ARCHIVE", server.url)
    with pytest.raises(IngestError, match=r"is not a complete tar archive .* the next run downloads it again"):
        cifar10.load_cifar10()
    server.content = archive.read_bytes()
    assert len(cifar10.load_cifar10().labels) == 60


def test_a_damaged_archive_of_the_user_stays(monkeypatch):
    download.cache_folder().mkdir(parents=True)
    own = download.cache_folder() / "mine.tar.gz"
    own.write_bytes(b"not yet copied as a whole")
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(own))
    with pytest.raises(IngestError, match=r"mine\.tar\.gz is not a complete tar archive"):
        cifar10.load_cifar10()
    assert own.exists()


def test_the_python_2_pickle_of_these_tests_is_readable(images):
    pixels, labels = images.batches()[0]
    batch = pickle.load(io.BytesIO(python2_pickle(pixels, labels)), encoding="bytes")
    assert np.array_equal(batch[b"data"], pixels)
    assert batch[b"labels"] == labels.tolist()
