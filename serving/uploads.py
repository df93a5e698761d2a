"""The body of a request: its content type, its form fields and the images in it.

Nothing here knows the image size. `pixels` gets the shape from the caller, who has the model.
"""

import math

import numpy as np
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from serving import refusals
from serving.refusals import BATCH_PATH, FIELD, FIELDS

FORM, RAW = "multipart/form-data", "application/octet-stream"
BATCH = 256
"""The most images in one request."""


def check_content_type(scope: Scope) -> None:
    """Raise Refusal if the request has a body of a type that its path does not take."""
    path, kind = scope["path"], _content_type(scope)
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
    fields = await _fields(scope, body, 1)
    values = [value for name, value in fields if name == FIELD]
    if values and isinstance(values[-1], bytes):
        return values[-1]
    raise refusals.text_field() if values else refusals.missing_field(name for name, _ in fields)


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
    request = Request({key: scope[key] for key in ("type", "method", "headers")}, replay(body))
    try:
        async with request.form(max_files=files, max_fields=8) as form:
            return [
                (name, await value.read() if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        # KeyError: a form without a boundary.
        reason = getattr(error, "detail", None) or getattr(error, "message", None)
        path = scope["path"]
        raise (refusals.malformed(path, str(reason).rstrip(".")) if reason else refusals.malformed(path)) from None
