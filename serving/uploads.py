"""The body of a request: its content type and encoding, its form fields and the images in it.

Nothing here knows the image size. `pixels` gets the shape from the caller, who has the model.
"""

import math
from collections.abc import AsyncGenerator
from functools import lru_cache

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive, Scope

from serving import refusals
from serving.refusals import BATCH_PATH, FIELD, FIELDS

FORM, RAW = "multipart/form-data", "application/octet-stream"
LIMIT = 10 * 2**20
"""The most bytes of a request body; a 24-megapixel photograph is usually smaller."""
HEADER_BYTES = 512
"""The most bytes of a content type or of a part's headers that are remembered for later requests."""
BATCH = 256
"""The most images in one request."""
AS_IT_IS = {"content-encoding": ("identity", ""), "transfer-encoding": ("chunked", "identity", "")}
"""The headers that can announce a compressed body, with their values for an uncompressed one."""


class Form(MultiPartParser):
    """Starlette's parser of a form, in memory, that knows a file without a name by its content type.

    A part is a file if it has a file name, or if its content type is that of an image or of raw bytes.
    """

    spool_max_size = LIMIT  # no upload is written to disk

    def on_headers_finished(self) -> None:
        """Start a file or a text, as the headers of the part say."""
        part = self._current_part
        headers = {name: value.decode("latin-1").strip().lower() for name, value in part.item_headers}
        encoding = headers.get(b"content-transfer-encoding", "binary")
        if encoding not in ("binary", "8bit", "7bit"):
            raise MultiPartException(f"Content-Transfer-Encoding is {encoding}, and must be binary")
        is_image = headers.get(b"content-type", "").startswith(("image/", RAW))
        # `filename*`, an encoded name: a form may not have one, but older clients send it, and Starlette ignores it.
        if part.content_disposition and (is_image or b"filename*" in part.content_disposition):
            part.content_disposition += b"; filename=image"
        super().on_headers_finished()


def check_headers(scope: Scope) -> None:
    """Raise Refusal if the request has a body of a type that its path does not take, or a compressed one."""
    path, kind, headers = scope["path"], _content_type(scope), Headers(scope=scope)
    for name, plain in AS_IT_IS.items():
        encoding = headers.get(name, "").strip().lower()
        if encoding not in plain:
            raise refusals.encoded(encoding, name)
    image = kind.startswith("image/") and path != BATCH_PATH
    if kind and not image and kind not in (FORM, RAW):
        raise refusals.unsupported(kind, path)


async def parse(scope: Scope, body: bytes) -> bytes | list[bytes]:
    """Return the image file in the body; for a batch, its image files or its raw pixels. Raises Refusal."""
    path, kind = scope["path"], _content_type(scope)
    if not body:
        raise refusals.missing(path)
    if not kind:
        raise refusals.no_content_type(path)
    if path == BATCH_PATH:
        return await _files(scope, body) if kind == FORM else body
    image = await _file(scope, body) if kind == FORM else body
    if not image:
        raise refusals.empty()
    return image


def pixels(body: bytes, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return the images uint8 (n, *image_shape) of a batch of raw pixels. Raises Refusal."""
    count, rest = divmod(len(body), math.prod(image_shape))
    if rest:
        raise refusals.wrong_length(len(body), image_shape)
    _check_count(count)
    return np.frombuffer(body, np.uint8).reshape(count, *image_shape)


def replay(body: bytes) -> Receive:
    """Return an ASGI `receive` that gives this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _content_type(scope: Scope) -> str:
    return Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()


def _check_count(count: int) -> None:
    if count > BATCH:
        raise refusals.too_many_images(count, BATCH)


async def _file(scope: Scope, body: bytes) -> bytes:
    image = only_file(Headers(scope=scope)["content-type"], body)
    if image is not None:
        return image
    fields = await _fields(scope, body, 1)
    values = [value for name, value in fields if name == FIELD]
    if values and isinstance(values[-1], bytes):
        return values[-1]
    raise refusals.text_field() if values else refusals.missing_field(name for name, _ in fields)


def only_file(content_type: str, body: bytes) -> bytes | None:
    """Return the file of a form that is one file in the field `image`; None for any other form.

    Nearly all forms are like this. Starlette's parser takes a seventh of the time of a request to a small network.
    """
    boundary = _boundary(content_type) if len(content_type) <= HEADER_BYTES else b""
    if not boundary:
        return None
    start, end = b"--" + boundary + b"\r\n", b"\r\n--" + boundary
    headers, content, last = len(start), body.find(b"\r\n\r\n") + 4, body.find(end, len(start))
    if not body.startswith(start) or not headers < content <= last + 2:
        return None
    if body[last:] not in (end + b"--\r\n", end + b"--") or content - headers > HEADER_BYTES:
        return None
    return body[content:last] if _is_image_file(body[headers : content - 4]) else None


@lru_cache(maxsize=256)
def _boundary(content_type: str) -> bytes:
    """Return the boundary of a form; empty if it has none."""
    return parse_options_header(content_type)[1].get(b"boundary", b"")


@lru_cache(maxsize=256)
def _is_image_file(headers: bytes) -> bool:
    """Return whether these are the headers of a file in the field `image`, and no others that matter."""
    values = dict.fromkeys((b"content-disposition", b"content-type"), b"")
    for line in headers.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or name.lower() not in values or values[name.lower()]:
            return False
        values[name.lower()] = value.strip()
    kind, options = parse_options_header(values[b"content-disposition"])
    return kind == b"form-data" and options.get(b"name") == FIELD.encode() and b"filename" in options


async def _files(scope: Scope, body: bytes) -> list[bytes]:
    fields = await _fields(scope, body, BATCH + 1)
    values = [value for name, value in fields if name == FIELDS]
    files = [value for value in values if isinstance(value, bytes)]
    if not files or len(files) < len(values):
        raise refusals.missing_files(name for name, _ in fields)
    _check_count(len(files))
    return files


async def _fields(scope: Scope, body: bytes, files: int) -> list[tuple[str, bytes | str]]:
    """Return the form's fields in order, files as bytes. Raises Refusal, also for more than `files` files."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    # A text of any size is parsed, so that its refusal can say that it is a text.
    parser = Form(Headers(scope=scope), chunks(), max_files=files, max_fields=8, max_part_size=LIMIT)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise refusals.malformed(scope["path"], reason.rstrip(".")) from None
    items = form.multi_items()
    fields = [(name, await value.read() if isinstance(value, UploadFile) else value) for name, value in items]
    await form.close()
    return fields
