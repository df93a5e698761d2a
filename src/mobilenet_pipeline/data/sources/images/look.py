"""Recognise the form of the images at a path."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images import archives, cifar, folders, hugging_face, table
from mobilenet_pipeline.data.sources.images.found import Found

FORMS = (
    "a folder for each class, a CSV or Parquet table with the columns path and label, Parquet files of Hugging Face, "
    "CIFAR-10's own files, or a zip or tar archive of these"
)
TABLES = (".csv", ".tsv", ".parquet", ".pq")


@contextmanager
def opened(path: Path) -> Iterator[Found]:
    """Yield what is found at a folder or a file; an archive is unpacked until the `with` body ends.

    Raises IngestError if there is nothing, or nothing that can be read as images with classes.
    """
    with ExitStack() as stack:
        try:
            found = _look(path, stack)
        except OSError as error:
            remedy = "correct its permissions" if isinstance(error, PermissionError) else "check its disk"
            cause = error.strerror or " ".join(str(error).split())
            raise IngestError(f"{error.filename or path} cannot be read ({cause}); {remedy}") from None
        if not found.records:
            lines = [f"{problem.name}: {problem.sentence}" for problem in found.problems[:3]]
            raise IngestError("; ".join([f"{path} has no images with a class", *lines, f"give {FORMS}"]))
        yield found


def _look(path: Path, stack: ExitStack) -> Found:
    if not path.exists():
        raise IngestError(f"{path} does not exist; give {FORMS}")
    if path.is_dir():
        return _in_folder(path)
    if cifar.is_archive(path):
        return cifar.read(path)
    if archives.is_archive(path):
        return _in_folder(stack.enter_context(archives.unpacked(path)), inside=True)
    return _in_file(path)


def _in_folder(root: Path, inside: bool = False) -> Found:
    if batches := cifar.folder_of(root):
        return cifar.read(batches)
    parquets = [path for path in sorted(root.rglob("*.parquet")) if not path.name.startswith(".")]
    if images := hugging_face.with_images(parquets):
        return hugging_face.read(images, root)
    inner = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    tables = [path for path in inner if path.suffix.lower() in TABLES and path.is_file()]
    if len(tables) == 1 and (table.names_images(tables[0]) or not any(path.is_dir() for path in inner)):
        return table.read(tables[0], inside)
    return folders.read(root)


def _in_file(path: Path) -> Found:
    if path.suffix.lower() not in TABLES:
        raise IngestError(f"{path} is {path.stat().st_size:,} bytes of another form; give {FORMS}")
    return hugging_face.read([path], path.parent) if hugging_face.with_images([path]) else table.read(path)
