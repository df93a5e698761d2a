"""What stands between the network and BentoML: reads the uploaded image, or answers 4xx with a sentence.

BentoML 1.4 has no limit on uploads (it ignores `max_request_size`), spools files to disk, fetches a URL that stands
where a file should be, picks a parser by content type (pickle among them) and answers faults in three different
shapes. So a body is read here, whole and bounded, and nothing behind this door ever parses one.
"""

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIMIT = 10 * 1024 * 1024
"""Bytes of a request body; a 24-megapixel photograph is usually smaller."""
FIELD = "image"
UPLOAD = "mobilenet_pipeline.upload"
"""Where in the ASGI scope the image's bytes are left."""
BODILESS = ("GET", "HEAD", "OPTIONS")
_HOW = f"Send the image as multipart/form-data in the field '{FIELD}', or as the body with a content type of image/*."


class Refusal(Exception):
    """A request that cannot be answered, and why: an HTTP status, a word for programs and a sentence for people."""

    def __init__(self, status: int, code: str, sentence: str, field: str | None = FIELD) -> None:
        super().__init__(sentence)
        self.status, self.code, self.field = status, code, field

    def response(self) -> Response:
        """The refusal as JSON: {"error": {"code", "message", "field"}}."""
        return JSONResponse({"error": {"code": self.code, "message": str(self), "field": self.field}}, self.status)


class FrontDoor:
    """ASGI middleware: every request with a body must carry one image, which is left in `scope[UPLOAD]`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in BODILESS:
            try:
                scope[UPLOAD] = await read_upload(scope, receive)
            except Refusal as refusal:
                # The rest of the body is left to the server, which reads past it, so the sender gets to the answer.
                await refusal.response()(scope, receive, send)
                return
            receive = _replay(b"")
        await self.app(scope, receive, send)


async def read_upload(scope: Scope, receive: Receive) -> bytes:
    """The bytes of the one image in the request. Raises Refusal."""
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = kind.startswith("image/") or kind == "application/octet-stream"
    if kind and not raw and kind != "multipart/form-data":  # before a byte of it is read
        raise Refusal(415, "unsupported_media_type", f"A body of type {kind} is not read here. {_HOW}", "content-type")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > LIMIT:
        raise _too_large()
    body = await _read_bounded(receive)
    if not body:
        raise Refusal(400, "missing_image", f"The request has no image. {_HOW}")
    if not kind:
        raise Refusal(415, "unsupported_media_type", f"The body has no content type. {_HOW}", "content-type")
    image = body if raw else await _file_in_form(scope, body)
    if not image:
        raise Refusal(400, "empty", "The file is empty.")
    return image


async def _read_bounded(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "cut_off", "The upload ended before its announced length.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LIMIT:  # a body sent in chunks announces no length
            raise _too_large()
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _file_in_form(scope: Scope, body: bytes) -> bytes:
    request = Request({key: scope[key] for key in ("type", "method", "headers")}, _replay(body))
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            found = form.get(FIELD)
            if isinstance(found, UploadFile):
                return await found.read()
            names = ", ".join(repr(name) for name in form) or "none"
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        # KeyError: a form without a boundary.
        reason = getattr(error, "detail", None) or getattr(error, "message", None) or "it has no boundary"
        raise Refusal(400, "malformed_form", f"The form cannot be read ({str(reason).rstrip('.')}). {_HOW}") from None
    if found is not None:
        raise Refusal(400, "missing_image", f"The field '{FIELD}' must hold a file, not text. {_HOW}")
    raise Refusal(400, "missing_image", f"The form has no file in the field '{FIELD}' (fields: {names}). {_HOW}")


def _too_large() -> Refusal:
    return Refusal(413, "too_many_bytes", f"The upload is larger than {LIMIT // 2**20} MiB; send a smaller image.")


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
