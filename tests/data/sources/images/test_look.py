"""Every form of images is recognised, and gives the same classes, splits and pixels."""

import errno
import gzip
import io
import json
import os
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar10_archives import Images, binary_members, python_members, write_tar
from picture_files import classes, encoded, put

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images import archives
from mobilenet_pipeline.data.sources.images.look import opened


def labels(path: Path) -> list[tuple[str, str]]:
    with opened(path) as found:
        assert len(list(found.contents())) == len(found.records)
        return sorted({(record.label, record.split) for record in found.records})


def kinds(path: Path) -> dict[str, str]:
    with opened(path) as found:
        return {problem.kind: problem.name for problem in found.problems}


def test_a_class_is_a_folder(tmp_path):
    assert labels(classes(tmp_path, {"cat": 2, "dog": 1})) == [("cat", ""), ("dog", "")]


def test_a_nested_class_is_the_relative_folder(tmp_path):
    assert labels(classes(tmp_path, {"animals/cat": 1, "animals": 1, "car": 1})) == [
        ("animals", ""),
        ("animals/cat", ""),
        ("car", ""),
    ]


def test_ready_made_splits_are_kept(tmp_path):
    classes(tmp_path, {"train/cat": 1, "valid/cat": 1, "Test/cat": 1})
    assert labels(tmp_path) == [("cat", "test"), ("cat", "train"), ("cat", "validation")]


def test_a_table_from_windows_has_backslashes(tmp_path):
    put(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "list.csv").write_text("\ufeffpath;label\r\ncat\\a.png;cat\r\n")
    assert labels(tmp_path / "list.csv") == [("cat", "")]


def test_a_table_has_paths_labels_splits_and_groups(tmp_path):
    put(tmp_path / "a.png", 1)
    put(tmp_path / "b.png", 2)
    (tmp_path / "list.csv").write_text("Path;Label;split;patient\na.png;007;train;x\nb.png;NA;val;y\n")
    with opened(tmp_path / "list.csv") as found:
        assert [tuple(record) for record in found.records] == [
            ("a.png", "007", "train", "x"),
            ("b.png", "NA", "validation", "y"),
        ]
    assert labels(tmp_path) == [("007", "train"), ("NA", "validation")]


def test_a_parquet_table_is_a_table(tmp_path):
    put(tmp_path / "a.png", 1)
    pd.DataFrame({"file_name": ["a.png"], "class": [3]}).to_parquet(tmp_path / "list.parquet")
    assert labels(tmp_path / "list.parquet") == [("3", "")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**60 + 1, None]), [str(2**60 + 1)]),
        (pa.array([3.0, None]), ["3"]),  # pandas wrote integers so
        (pa.array([3.5, None]), ["3.5"]),
        (pa.array([3.0, 4.0]), ["3.0", "4.0"]),
        (pa.array(["03", None]), ["03"]),
    ],
)
def test_a_missing_label_of_a_parquet_table_leaves_the_others(tmp_path, values, expected):
    put(tmp_path / "a.png", 1)
    pq.write_table(pa.table({"path": ["a.png", "a.png"], "label": values}), tmp_path / "list.parquet")
    with opened(tmp_path / "list.parquet") as found:
        assert [record.label for record in found.records] == expected


def test_a_table_with_faults_names_every_row(tmp_path):
    put(tmp_path / "a.png", 1)
    rows = "path,label,split\na.png,cat,train\nb.png,cat,train\na.png,,train\na.png,cat,holdout\n"
    (tmp_path / "list.csv").write_text(rows)
    assert kinds(tmp_path) == {"missing": "b.png", "incomplete": "a.png", "split": "a.png"}


@pytest.mark.parametrize("content", [b"name,kind\na.png,cat\n", b"\xff\xfe\x00", b""])
def test_another_table_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(IngestError, match=r"list\.csv (has columns name, kind; it needs|cannot be read as a table)"):
        labels(tmp_path / "list.csv")


def hugging_face(path: Path, values: list[int], names: list[str] | None) -> None:
    image = pa.array([{"bytes": encoded(number), "path": f"{number}.png"} for number in range(len(values))])
    table = pa.table({"image": image, "label": pa.array(values)})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_hugging_face_files_have_names_in_their_metadata(tmp_path):
    hugging_face(tmp_path / "data" / "train-00000-of-00001.parquet", [1, 0], ["dog", "cat"])
    hugging_face(tmp_path / "data" / "test-00000-of-00001.parquet", [1], ["dog", "cat"])
    assert labels(tmp_path) == [("cat", "test"), ("cat", "train"), ("dog", "train")]
    with opened(tmp_path) as found:
        assert found.class_names == ["dog", "cat"]
        assert next(found.contents()) == encoded(0)


def test_hugging_face_labels_without_names_are_numbers(tmp_path):
    hugging_face(tmp_path / "all.parquet", [1, 0], None)
    assert labels(tmp_path / "all.parquet") == [("0", ""), ("1", "")]


def test_a_hugging_face_label_of_no_class_is_named(tmp_path):
    hugging_face(tmp_path / "all.parquet", [1, 7, 0], ["dog", "cat"])
    assert kinds(tmp_path) == {"incomplete": "all.parquet, row 2 (1.png)"}
    with opened(tmp_path) as found:
        assert list(found.contents()) == [encoded(0), encoded(2)]


@pytest.mark.parametrize("content", [b"", b"no Parquet", None])
def test_a_damaged_hugging_face_file_is_refused_by_name(tmp_path, content):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        hugging_face(tmp_path / name, [1, 0], ["dog", "cat"])
    damaged = tmp_path / "train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-50] if content is None else content)
    with pytest.raises(IngestError, match=r"train-00001-of-00002\.parquet is no complete Parquet file .*download it"):
        labels(tmp_path)


def test_a_hugging_face_file_with_a_damaged_page_is_refused_by_name(tmp_path):
    hugging_face(tmp_path / "all.parquet", [1, 0], ["dog", "cat"])
    content = bytearray((tmp_path / "all.parquet").read_bytes())
    content[4:3000] = b"\xff" * 2996
    (tmp_path / "all.parquet").write_bytes(content)
    with pytest.raises(IngestError, match=r"all\.parquet is no complete Parquet file"):
        labels(tmp_path)


@pytest.mark.parametrize("wrapper", ["", "pictures/"])
def test_a_zip_archive_is_unpacked_with_or_without_its_folder(tmp_path, wrapper):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{wrapper}cat/1.png", encoded(1))
        archive.writestr(f"{wrapper}dog/2.png", encoded(2))
        archive.writestr(f"__MACOSX/{wrapper}cat/._1.png", b"?")
    assert labels(tmp_path / "a.zip") == [("cat", ""), ("dog", "")]


def test_a_tar_archive_is_unpacked_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    write_tar(tmp_path / "a.tgz", {"cat/1.png": encoded(1), "dog/2.png": encoded(2)})
    assert labels(tmp_path / "a.tgz") == [("cat", ""), ("dog", "")]
    assert os.listdir(tmp_path) == ["a.tgz"]


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil/evil.png"])
def test_an_archive_cannot_write_outside(tmp_path, name):
    folder = tmp_path / "here"
    folder.mkdir()
    write_tar(folder / "a.tar", {name: encoded(1), "cat/1.png": encoded(2)}, "")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(name, encoded(1))
        archive.writestr("cat/1.png", encoded(2))
    for file in ("a.tar", "a.zip"):
        with suppress(IngestError):  # or the name loses what leads outside
            labels(folder / file)
    assert not (tmp_path / "evil.png").exists()
    assert not Path("/tmp/evil").exists()


def test_a_table_in_an_archive_cannot_name_files_outside(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", encoded(1))
        archive.writestr("list.csv", "path,label\n1.png,cat\n/etc/passwd,dog\n")
    assert kinds(tmp_path / "a.zip") == {"outside": "/etc/passwd"}


def test_a_link_in_an_archive_that_leads_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("cat/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(IngestError, match=r"a\.tar: .*make the archive of the images' own folder"):
        labels(tmp_path / "a.tar")


def test_an_archive_that_is_cut_off_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"cat/{number}.png": encoded(number) for number in range(9)}, "")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(IngestError, match=r"a\.tar is no complete archive .*download or pack it again"):
        labels(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 100, 511])
@pytest.mark.parametrize("member", [1, 5, 9])
def test_an_archive_that_ends_without_its_end_mark_is_refused(tmp_path, member, cut, compressed):
    path, headers = tar_of_nine(tmp_path)
    content = path.read_bytes()[: headers[member] + cut]
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(IngestError, match=r"a\.tar is no complete archive .*download or pack it again"):
        labels(path)


@pytest.mark.parametrize("member", [1, 8])
def test_an_archive_with_a_damaged_header_is_refused(tmp_path, member):
    path, headers = tar_of_nine(tmp_path)
    content = bytearray(path.read_bytes())
    content[headers[member]] ^= 1
    path.write_bytes(content)
    with pytest.raises(IngestError, match=r"a\.tar is no complete archive \(bad checksum\)"):
        labels(path)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_archive_with_a_damaged_byte_is_refused(tmp_path, kind):
    random = np.random.default_rng(0).bytes(2_000_000)
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": encoded(1), "cat/2.png": random}, kind)
    content = bytearray(path.read_bytes())
    content[-1000:-900] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(IngestError, match=r"a\.tar is no complete archive .*download or pack it again"):
        labels(path)


def test_a_disk_that_is_full_while_an_archive_is_unpacked_is_named(tmp_path, monkeypatch):
    def extract(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_tar(tmp_path / "a.tar", {"cat/1.png": encoded(1)}, "")
    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    with pytest.raises(IngestError, match=r"a\.tar could not be unpacked into .*No space left .*set TMPDIR"):
        labels(path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def listed(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "iterdir", listed)
    with pytest.raises(IngestError, match=rf"{tmp_path} cannot be read \(Input/output error\); check its disk"):
        labels(tmp_path)


def tar_of_nine(folder: Path) -> tuple[Path, list[int]]:
    """Return an archive of nine pictures, and the places of its headers and of its end mark."""
    path = write_tar(folder / "a.tar", {f"cat/{number}.png": encoded(number) for number in range(9)}, "")
    with tarfile.open(path) as archive:
        places = [member.offset for member in archive]
        return path, [*places, archive.offset]


def test_an_archive_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": encoded(1)}, "")
    monkeypatch.setattr("mobilenet_pipeline.data.sources.images.archives.SPARE", 2**60)
    with pytest.raises(IngestError, match=r"needs .* bytes unpacked, .*TMPDIR"):
        labels(path)


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_the_size_of_an_archive_is_that_of_all_its_files(tmp_path, monkeypatch, name):
    contents = {f"cat/{number}.png": bytes(1_000) for number in range(3)}
    write_tar(tmp_path / "a.tar", contents, "")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file, content in contents.items():
            archive.writestr(file, content)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=archives.SPARE + 2_500))
    with pytest.raises(IngestError, match=rf"{name} needs at least 3,000 bytes unpacked, and .* has 2,500 free"):
        labels(tmp_path / name)


@pytest.mark.parametrize("members", [binary_members, python_members])
@pytest.mark.parametrize("extracted", [True, False])
def test_cifar10_is_recognised_in_every_form(tmp_path, members, extracted):
    archive = write_tar(tmp_path / "cifar.tar.gz", members(Images()))
    path = tmp_path / "out" if extracted else archive
    if extracted:
        with tarfile.open(archive) as file:
            file.extractall(path, filter="data")
    with opened(path) as found:
        assert found.form == "CIFAR-10's own files"
        assert [record.split for record in found.records] == ["train"] * 50 + ["test"] * 10
        assert found.class_names[3] == found.records[3].label == "cat"


def test_a_damaged_cifar10_folder_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"no pickle")
    with pytest.raises(IngestError, match=r"cifar-10-batches-py: .*unpack CIFAR-10's archive again"):
        labels(tmp_path)


def test_hidden_files_empty_folders_and_links_are_named(tmp_path):
    classes(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / ".DS_Store").write_bytes(b"?")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    put(tmp_path / "loose.png", 9)
    assert kinds(tmp_path) == {
        "hidden": ".",
        "empty_folder": "empty",
        "link_loop": "cat/loop",
        "missing": "cat/gone.png",
        "no_class": "loose.png",
    }


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    classes(tmp_path / "elsewhere", {"x": 2})
    classes(tmp_path / "here", {"cat": 1})
    (tmp_path / "here" / "dog").symlink_to(tmp_path / "elsewhere" / "x")
    assert labels(tmp_path / "here") == [("cat", ""), ("dog", "")]


def test_a_name_that_is_no_text_is_a_problem(tmp_path):
    classes(tmp_path, {"cat": 1})
    (tmp_path / "cat" / os.fsdecode(b"\xff.png")).write_bytes(encoded(1))
    assert kinds(tmp_path) == {"name": "cat/�.png"}


@pytest.mark.parametrize("name", ["absent", "empty", "one.png", "notes.txt"])
def test_a_path_without_images_is_refused_with_the_forms(tmp_path, name):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "one.png", 1)
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(IngestError, match=rf"{name} .*give a folder for each class, a CSV or Parquet table"):
        labels(tmp_path / name)


def test_a_text_beside_the_folders_of_classes_is_no_table(tmp_path):
    classes(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "sizes.csv").write_text("camera,width\na,3\n")
    assert labels(tmp_path) == [("cat", ""), ("dog", "")]


def test_bytes_in_memory_are_the_pictures(tmp_path):
    hugging_face(tmp_path / "all.parquet", [0], ["dog", "cat"])
    with opened(tmp_path) as found:
        (data,) = found.contents()
    assert io.BytesIO(data).read(4) == b"\x89PNG"
