import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from mobilenet_pipeline.data.sources import download
from mobilenet_pipeline.data.sources.base import DownloadError, IngestError


def test_a_download_is_cached(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    monkeypatch.setattr(download, "OFFICIAL_URL", server.url)
    first, second = download.download(server.url), download.download(server.url)
    assert first == second == download.cache_folder() / "cifar-10-binary.tar.gz"
    assert first.read_bytes() == server.content
    assert len(server.ranges) == 1


def test_two_processes_download_an_archive_once(server, archive):
    server.content = archive.read_bytes()
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(download.download, [server.url] * 2))
    assert paths[0] == paths[1]
    assert len(server.ranges) == 1


def test_a_network_failure_has_a_remedy(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DownloadError, match=rf"{port}.* could not be downloaded .* set CIFAR10_ARCHIVE"):
        download.download(f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")


def test_a_cache_that_is_not_writable_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOBILENET_PIPELINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(IngestError, match=r"file: the download could not be stored there .*; free disk space"):
        download.download("http://127.0.0.1:9/a.tar.gz")


def test_a_broken_download_resumes_where_it_stopped(server, archive, monkeypatch):
    server.content, server.breaks = archive.read_bytes(), [100_000]
    monkeypatch.setattr(download, "RETRIES", 1)
    assert download.download(server.url).read_bytes() == server.content
    assert server.ranges == [None, f"bytes={download.PIECE}-"]


def test_a_part_is_never_taken_for_the_whole_file(server, archive, monkeypatch):
    server.content, server.breaks = archive.read_bytes(), [100_000]
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DownloadError):
        download.download(server.url)
    assert not list(download.cache_folder().glob("*.tar.gz"))
    assert download.download(server.url).read_bytes() == server.content
    assert server.ranges == [None, f"bytes={download.PIECE}-"]


def test_a_changed_file_is_downloaded_from_the_start(server, archive, monkeypatch):
    server.content, server.breaks = bytes(150_000), [100_000]
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DownloadError):
        download.download(server.url)
    server.content, server.tag = archive.read_bytes(), '"two"'
    assert download.download(server.url).read_bytes() == server.content


def test_a_complete_part_does_not_block_the_download(server, archive, monkeypatch):
    server.content = archive.read_bytes()
    part = download.cache_folder() / "cifar-10-binary.tar.gz.part"
    part.parent.mkdir()
    part.write_bytes(server.content)
    part.with_name(f"{part.name}.tag").write_text(server.tag)
    monkeypatch.setattr(download, "OFFICIAL_URL", server.url)
    monkeypatch.setattr(download, "RETRIES", 1)
    assert download.download(server.url).read_bytes() == server.content


def test_a_download_with_another_hash_is_refused(server, monkeypatch):
    server.content = b"<html>Please log in to the network</html>"
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setitem(download.KNOWN_HASHES, server.url, "md5:c32a1d4ab5d03f1284b67883e8d87530")
    with pytest.raises(DownloadError, match="c32a1d4ab5d03f1284b67883e8d87530"):
        download.download(server.url)
    assert not list(download.cache_folder().glob("*.tar.gz"))


@pytest.mark.parametrize(
    ("place", "expected"),
    [("https://a.org/b.tar", True), ("http://a.org", True), ("file:///b.tar", False), ("/data/b.tar", False)],
)
def test_only_http_addresses_are_on_the_web(place, expected):
    assert download.is_on_the_web(place) is expected
