"""Sources: archives are found, downloaded and decoded, and nothing that is wrong with them goes unsaid."""

import io
import os
import pickle
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from archives import binary_members, python2_pickle, python_members, write_tar

from mobilenet_pipeline import sources
from mobilenet_pipeline.sources import DownloadError, IngestError

MAKERS = {"binary": binary_members, "python": python_members}
LAST = {"binary": "cifar-10-batches-bin/test_batch.bin", "python": "cifar-10-batches-py/test_batch"}


@pytest.fixture
def archive(tmp_path, images):
    return write_tar(tmp_path / "cifar.tar.gz", binary_members(images))


def refusal(path) -> str:
    with pytest.raises(IngestError) as refused:
        sources.read_archive(path)
    assert str(path) in str(refused.value)
    assert "CIFAR10_ARCHIVE" in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("version", MAKERS)
@pytest.mark.parametrize("compression", ["gz", "xz", ""])
def test_an_archive_is_recognised_by_its_content(tmp_path, images, version, compression):
    path = write_tar(tmp_path / "download.bin", MAKERS[version](images), compression)
    found = sources.read_archive(path)
    assert np.array_equal(found.images, images.rgb())
    assert np.array_equal(found.labels, images.labels)
    assert found.is_test.tolist() == [False] * 50 + [True] * 10


def test_a_batch_that_python_3_pickled_is_read(tmp_path, images):
    pixels, labels = images.batches()[5]
    content = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
    found = sources.read_archive(write_tar(tmp_path / "a.tar", {**python_members(images), LAST["python"]: content}, ""))
    assert np.array_equal(found.images, images.rgb())


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "photo.tar.gz").write_bytes(b"not an archive at all" * 100)
    assert "is not a whole tar archive" in refusal(tmp_path / "photo.tar.gz")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_archive_is_refused_with_its_name(archive, share):
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    assert "is not a whole tar archive" in refusal(archive)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.tar.gz").touch()
    assert "is not a whole tar archive" in refusal(tmp_path / "empty.tar.gz")


@pytest.mark.parametrize("version", MAKERS)
def test_an_archive_without_a_batch_is_refused_naming_it(tmp_path, images, version):
    members = MAKERS[version](images)
    del members[LAST[version]]
    assert "the archive holds no test_batch" in refusal(write_tar(tmp_path / "a.tar.gz", members))


def test_a_batch_that_is_no_whole_number_of_rows_is_refused(tmp_path, images):
    members = binary_members(images)
    members[LAST["binary"]] = members[LAST["binary"]][:-1]
    assert "has 30,729 bytes, not a multiple of 3,073" in refusal(write_tar(tmp_path / "a.tar.gz", members))


@pytest.mark.parametrize("name", ["../test_batch.bin", "/etc/test_batch.bin", "a/../../b"])
def test_a_member_that_points_outside_is_refused_and_nothing_is_written(tmp_path, images, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = write_tar(folder / "a.tar.gz", {**binary_members(images), name: b"escaped"})
    assert f"member {name!r} points outside the archive" in refusal(path)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["inside", "a.tar.gz"]


def test_a_link_in_the_place_of_a_batch_is_refused(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    assert "is a link, too large, or there twice" in refusal(tmp_path / "a.tar")


def test_a_batch_that_is_there_twice_is_refused(tmp_path, images):
    members = {**binary_members(images), "other/test_batch.bin": bytes(3073)}
    assert "'other/test_batch.bin'" in refusal(write_tar(tmp_path / "a.tar.gz", members))


def test_a_batch_of_an_absurd_size_is_refused(tmp_path, images, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BATCH_BYTES", 30_000)
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
    assert "asks for posix.mkdir, which no CIFAR-10 batch needs, and was not run" in refusal(path)
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


def test_a_cut_off_pickle_is_refused(tmp_path, images):
    content = python2_pickle(*images.batches()[5])[:5000]
    path = write_tar(tmp_path / "a.tar.gz", {**python_members(images), LAST["python"]: content})
    assert "is not a CIFAR-10 python batch" in refusal(path)


def test_an_archive_variable_that_names_no_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(tmp_path / "absent.tar.gz"))
    with pytest.raises(IngestError, match=r"absent\.tar\.gz: CIFAR10_ARCHIVE names no file"):
        sources.load_cifar10()


@pytest.mark.parametrize("place", [str, lambda path: path.as_uri()], ids=["path", "file URL"])
def test_the_archive_variable_takes_a_path_and_a_file_url(archive, monkeypatch, place):
    monkeypatch.setenv("CIFAR10_ARCHIVE", place(archive))
    assert sources.find_archive() == archive


def test_a_network_that_is_down_is_told_with_the_remedy(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(sources, "OFFICIAL_URL", f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")
    monkeypatch.setattr(sources, "RETRIES", 0)
    with pytest.raises(DownloadError, match=rf"{port}.* could not be downloaded .* set CIFAR10_ARCHIVE"):
        sources.load_cifar10()


def test_a_download_is_kept_and_used_again(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    monkeypatch.setattr(sources, "OFFICIAL_URL", server.url)
    first, second = sources.find_archive(), sources.find_archive()
    assert first == second == sources.cache_folder() / "cifar-10-binary.tar.gz"
    assert first.read_bytes() == server.content
    assert len(server.ranges) == 1


def test_the_archive_variable_takes_a_web_address(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    monkeypatch.setenv("CIFAR10_ARCHIVE", server.url)
    assert len(sources.load_cifar10().labels) == 60


def test_a_download_that_is_no_archive_is_removed_and_not_met_again(server, archive, monkeypatch):
    server.content = b"<html>We are moving house</html>"
    monkeypatch.setenv("CIFAR10_ARCHIVE", server.url)
    with pytest.raises(IngestError, match=r"is not a whole tar archive .* the next run fetches it again"):
        sources.load_cifar10()
    server.content = archive.read_bytes()
    assert len(sources.load_cifar10().labels) == 60


def test_a_bad_archive_of_the_users_own_stays_where_it_is_even_among_the_downloads(monkeypatch):
    sources.cache_folder().mkdir(parents=True)
    own = sources.cache_folder() / "mine.tar.gz"
    own.write_bytes(b"not yet copied as a whole")
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(own))
    with pytest.raises(IngestError, match=r"mine\.tar\.gz is not a whole tar archive"):
        sources.load_cifar10()
    assert own.exists()


def test_two_that_want_the_same_archive_download_it_once(server, archive):
    server.content = archive.read_bytes()
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(sources.download, [server.url] * 2))
    assert paths[0] == paths[1]
    assert len(server.ranges) == 1


def test_a_cache_that_cannot_be_written_is_told_with_its_path(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOBILENET_PIPELINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(IngestError, match=r"file: the download could not be kept there .*; make room"):
        sources.download("http://127.0.0.1:9/a.tar.gz")


def test_a_broken_download_goes_on_where_it_stopped(server, archive, monkeypatch):
    server.content, server.breaks = archive.read_bytes(), [100_000]
    monkeypatch.setattr(sources, "RETRIES", 1)
    assert sources.download(server.url).read_bytes() == server.content
    assert server.ranges == [None, f"bytes={sources.PIECE}-"]


def test_a_part_of_a_download_is_never_taken_for_the_whole(server, archive, monkeypatch):
    server.content, server.breaks = archive.read_bytes(), [100_000]
    monkeypatch.setattr(sources, "RETRIES", 0)
    with pytest.raises(DownloadError):
        sources.download(server.url)
    assert not list(sources.cache_folder().glob("*.tar.gz"))
    assert sources.download(server.url).read_bytes() == server.content
    assert server.ranges == [None, f"bytes={sources.PIECE}-"]


def test_a_download_begins_anew_when_the_file_has_changed(server, archive, monkeypatch):
    server.content, server.breaks = bytes(150_000), [100_000]
    monkeypatch.setattr(sources, "RETRIES", 0)
    with pytest.raises(DownloadError):
        sources.download(server.url)
    server.content, server.tag = archive.read_bytes(), '"two"'
    assert sources.download(server.url).read_bytes() == server.content


def test_a_part_that_is_all_there_does_not_block_the_download(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    part = sources.cache_folder() / "cifar-10-binary.tar.gz.part"
    part.parent.mkdir()
    part.write_bytes(server.content)
    part.with_name(f"{part.name}.tag").write_text(server.tag)
    monkeypatch.setattr(sources, "OFFICIAL_URL", server.url)
    monkeypatch.setattr(sources, "RETRIES", 1)
    assert sources.find_archive().read_bytes() == server.content


def test_a_download_that_is_not_what_was_promised_is_refused(server, monkeypatch):
    server.content = b"<html>Please log in to the network</html>"
    monkeypatch.setattr(sources, "RETRIES", 0)
    monkeypatch.setitem(sources.KNOWN_HASHES, server.url, "md5:c32a1d4ab5d03f1284b67883e8d87530")
    with pytest.raises(DownloadError, match="c32a1d4ab5d03f1284b67883e8d87530"):
        sources.download(server.url)
    assert not list(sources.cache_folder().glob("*.tar.gz"))


def test_digits_are_32_by_32_greys_over_the_whole_range_with_a_fixed_stratified_test_split():
    found = sources.load_digits()
    assert (found.images.shape, found.images.dtype) == ((1797, 32, 32, 3), np.uint8)
    assert (found.images.min(), found.images.max(), int(found.is_test.sum())) == (0, 255, 360)
    assert (found.images == found.images[..., :1]).all()
    assert np.bincount(found.labels[found.is_test]).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_python_2_pickle_of_these_tests_is_one_that_numpy_reads(images):
    pixels, labels = images.batches()[0]
    batch = pickle.load(io.BytesIO(python2_pickle(pixels, labels)), encoding="bytes")
    assert np.array_equal(batch[b"data"], pixels)
    assert batch[b"labels"] == labels.tolist()
