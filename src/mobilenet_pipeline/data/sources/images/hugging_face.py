"""Parquet files as Hugging Face's `datasets` writes them: a struct of bytes and path, and integer labels with names.

The names of the classes are in the Arrow schema's metadata, key `huggingface`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images.found import Content, Found, Problem, Record, split_of

BATCH = 64
"""Images that are in memory at a time."""


def with_images(paths: list[Path]) -> list[Path]:
    """Return those of the files that are Parquet files with a column of images.

    Raises IngestError if some have one, and another Parquet file cannot be read: its images would be missing.
    """
    images: list[Path] = []
    damaged: list[IngestError] = []
    for path in paths:
        try:
            if _image_column(pq.read_schema(path)):
                images.append(path)
        except PermissionError:
            raise
        except (pa.ArrowException, OSError) as error:
            damaged.append(_damaged(path, error))
    if images and damaged:
        raise damaged[0]
    return images


def _damaged(path: Path, error: Exception) -> IngestError:
    cause = " ".join(str(error).split())
    return IngestError(f"{path} is no complete Parquet file ({cause}); download it again, or remove it")


def _image_column(schema: pa.Schema) -> str | None:
    return next((field.name for field in schema if _holds_images(field.type)), None)


def _holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    fields = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    return "bytes" in fields and any(test(fields["bytes"]) for test in (pa.types.is_binary, pa.types.is_large_binary))


def read(paths: list[Path], root: Path) -> Found:
    """Return the images of Parquet files that `with_images` returned.

    The split is in a file's name, such as `test-00000-of-00001.parquet`. Raises IngestError if a file lacks a
    column of labels, or is damaged; `contents` raises it, too.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    names: list[str] = []
    places: list[tuple[Path, str, list[bool]]] = []
    for path in sorted(paths):
        schema = pq.read_schema(path)
        image = _image_column(schema) or ""
        label, names_here = _label_column(schema, image, path)
        names = names or names_here
        taken: list[bool] = []
        split = _split_in(path.relative_to(root)) or ""
        columns = [f"{image}.path", label] if _has_path(schema, image) else [label]
        for batch in _batches(path, 4096, columns):
            has_path = image in batch.schema.names
            files = batch.column(image).field("path").to_pylist() if has_path else [None] * len(batch)
            for name, value in zip(files, batch.column(label).to_pylist(), strict=True):
                shown = f"{path.name}, row {len(taken) + 1}" + (f" ({name})" if name else "")
                text = _text(value, names_here)
                taken.append(text is not None)
                if text is None:
                    problems.append(Problem(shown, "incomplete", f"the label {value!r} is none of the classes"))
                else:
                    records.append(Record(shown, text, split))
        places.append((path, image, taken))

    def contents() -> Iterator[Content]:
        for path, image, taken in places:
            keep = iter(taken)
            for batch in _batches(path, BATCH, [f"{image}.bytes"], pre_buffer=False, buffer_size=2**20):
                for data in batch.column(image).field("bytes"):
                    if next(keep):
                        yield data.as_py() or b""

    return Found("Hugging Face Parquet files", records, problems, contents, names)


def _batches(path: Path, rows: int, columns: list[str], **options: Any) -> Iterator[pa.RecordBatch]:
    """Yield the columns, at most `rows` rows at a time. Raises IngestError if the file is damaged."""
    try:
        with pq.ParquetFile(path, **options) as file:
            yield from file.iter_batches(rows, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _label_column(schema: pa.Schema, image: str, path: Path) -> tuple[str, list[str]]:
    """Return the column of labels and the names of its classes."""
    features: dict[str, Any] = {}
    with suppress(KeyError, ValueError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    named = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("names")]
    usual = [name for name in ("label", "labels", "fine_label", "class", "target") if name in schema.names]
    chosen = [name for name in (*named, *usual) if name in schema.names and name != image]
    if not chosen:
        raise IngestError(f"{path} has columns {', '.join(schema.names)}; it needs one called label")
    column = next((name for name in chosen if name in usual), chosen[0])
    names = features.get(column, {}).get("names") if isinstance(features.get(column), dict) else None
    return column, [str(name) for name in names or []]


def _has_path(schema: pa.Schema, image: str) -> bool:
    kind = schema.field(image).type
    return "path" in [kind.field(index).name for index in range(kind.num_fields)]


def _text(value: Any, names: list[str]) -> str | None:
    if value is None or (isinstance(value, int) and names and not 0 <= value < len(names)):
        return None
    return names[value] if isinstance(value, int) and names else str(value)


def _split_in(path: Path) -> str | None:
    words = [word for part in reversed(PurePosixPath(path).parts) for word in re.split(r"[^A-Za-z]+", part)[:1]]
    return next((split for word in words if (split := split_of(word))), None)
