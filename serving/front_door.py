"""What stands between the network and BentoML: reads the upload, or answers 4xx, 500 and 503 with a sentence.

BentoML 1.4 has no limit on uploads (it ignores `max_request_size`), spools files to disk, fetches a URL that stands
where a file should be, picks a parser by content type (pickle among them) and answers faults in three different
shapes. So a body is read here, whole and bounded, and nothing behind this door ever parses one.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Iterable

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import measures
from serving.measures import VERSION_HEADER

LOG = logging.getLogger("bentoml.serving.front_door")
LIMIT = 10 * 2**20
"""Bytes of a request body; a 24-megapixel photograph is usually smaller."""
HELD = 128 * 2**20
"""Bytes of all bodies that are in memory at a time."""
WAITING = 32
"""Requests that are worked on or wait for it; who comes then is sent away, so that nobody waits long."""
BATCH = 256
"""Images in one request."""
READ_SECONDS = 15
"""A body must have arrived by then."""
IMAGE_BYTES = 32 * 32 * 3
FIELD, FIELDS = "image", "images"
UPLOAD = "mobilenet_pipeline.upload"
"""Where in the ASGI scope the upload is left: an image file's bytes; for a batch a list of them, or bytes of pixels."""
READS, POSTS = ("GET", "HEAD"), ("POST",)
BATCH_PATH = "/predict_batch"
HEALTH = ("/livez", "/readyz", "/healthz")
PATHS = {
    **dict.fromkeys(("/", "/docs", "/docs.json", "/model", "/metrics", *HEALTH), READS),
    **dict.fromkeys(("/predict", BATCH_PATH, "/compare", "/input"), POSTS),
}
STATIC = "/static_content/"
"""What the OpenAPI page is made of."""
# The page itself holds nothing, and a browser that asks for it has no token yet.
OPEN = ("/", *HEALTH)
_ONE = f"Send the image as multipart/form-data in the field '{FIELD}', or as the body with a content type of image/*."
_MANY = (
    f"Send the images as multipart/form-data, each in a field '{FIELDS}', or as application/octet-stream with "
    f"{IMAGE_BYTES} bytes an image (32 rows of 32 RGB pixels)."
)


class Refusal(Exception):
    """A request that cannot be answered, and why: an HTTP status, a word for programs and a sentence for people."""

    def __init__(
        self, status: int, code: str, sentence: str, field: str | None = FIELD, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.code, self.field, self.headers = status, code, field, headers

    def document(self) -> dict[str, dict[str, str | None]]:
        """The refusal for programs: {"error": {"code", "message", "field"}}."""
        return {"error": {"code": self.code, "message": str(self), "field": self.field}}

    def response(self) -> Response:
        """The refusal as an HTTP answer."""
        return JSONResponse(self.document(), self.status, self.headers)


def missing(path: str) -> Refusal:
    """400, for a request without a body."""
    return Refusal(400, "missing_image", f"The request has no image. {_how(path)}", _field(path))


def empty() -> Refusal:
    """400, for a file of no bytes."""
    return Refusal(400, "empty", "The file is empty.")


def malformed(path: str, reason: str = "Missing boundary in multipart") -> Refusal:
    """400, for a form that cannot be read."""
    return Refusal(400, "malformed_form", f"The form cannot be read ({reason}). {_how(path)}", _field(path))


def cut_off() -> Refusal:
    """400, for an upload that ends too early."""
    return Refusal(400, "cut_off", "The upload ended before its announced length.")


def wrong_length(count: int) -> Refusal:
    """400, for pixels that are no whole number of images."""
    return Refusal(400, "wrong_length", f"{count} bytes are no whole number of images. {_MANY}", FIELDS)


def unauthorized() -> Refusal:
    """401, for a request without the key."""
    sentence = "This service wants a key: send the header 'Authorization: Bearer KEY'."
    return Refusal(401, "unauthorized", sentence, "authorization", {"WWW-Authenticate": "Bearer"})


def too_slow() -> Refusal:
    """408, for an upload that does not arrive."""
    sentence = f"The upload had not arrived after {READ_SECONDS} s; send a smaller image."
    return Refusal(408, "too_slow", sentence, None, {"Connection": "close"})


def too_large() -> Refusal:
    """413, for a body of too many bytes."""
    return Refusal(413, "too_many_bytes", f"The upload is larger than {LIMIT // 2**20} MiB; send a smaller image.")


def too_many_images(count: int) -> Refusal:
    """413, for a batch of too many images."""
    sentence = f"{count} images are more than {BATCH}, which is what one request may have; send several."
    return Refusal(413, "too_many_images", sentence, FIELDS)


def unread(kind: str, path: str) -> Refusal:
    """415, for a body of another content type."""
    sentence = f"A body of type {kind} is not read here. {_how(path)}"
    return Refusal(415, "unsupported_media_type", sentence, "content-type")


def failed() -> Refusal:
    """500, for a fault of the service."""
    return Refusal(500, "fault", "The service failed at this request; its log says why.", None)


def overloaded(what: str = "Too many requests are waiting") -> Refusal:
    """503, for who comes when too much is being worked on."""
    return Refusal(503, "overloaded", f"{what}; try again in a second.", None, {"Retry-After": "1"})


class FrontDoor:
    """ASGI middleware: lets known requests in, leaves what they carry in `scope[UPLOAD]`, and counts the answers."""

    def __init__(self, app: ASGIApp, key: str | None = None) -> None:
        self.app = app
        if key is not None and not key.strip():
            raise ValueError("SERVING_API_KEY is empty: set it to the key, or not at all")
        self.key = key.strip().encode() if key else None
        self.held = self.working = 0
        MultiPartParser.spool_max_size = LIMIT  # no upload goes to the disk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there is none here
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status, version, begun = 500, "", False

        async def counted(message: Message) -> None:
            nonlocal status, version, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                version = next((value.decode() for name, value in message["headers"] if name == VERSION_HEADER), "")
            await send(message)

        held = working = 0
        try:
            self._admit(scope)
            if scope["method"] in POSTS:
                self._check_room()  # reading and parsing for nothing would take time from those who have a place
                body, held = await self._body(scope, receive)
                self._check_room()  # a slow upload has held none
                self.working += (working := 1)
                scope[UPLOAD] = await _batch_in(scope, body) if scope["path"] == BATCH_PATH else await _one(scope, body)
                del body  # a form's files are copies
                receive = _replay(b"")
            await self.app(scope, receive, counted)
        except Refusal as refusal:
            # The rest of the body is left to the server, which reads past it, so the sender gets to the answer.
            await refusal.response()(scope, receive, counted)
        except Exception:
            if begun:
                raise
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            await failed().response()(scope, receive, counted)
        finally:
            self.held -= held
            self.working -= working
            path = scope["path"] if scope["path"] in PATHS else "other"
            measures.count_request(path, status, version, time.perf_counter() - started)

    def _admit(self, scope: Scope) -> None:
        """Let the request in by its path, method and token. Raises Refusal."""
        path, method = scope["path"], scope["method"]
        static = path.startswith(STATIC) and ".." not in path
        allowed = READS if static else PATHS.get(path)
        if self.key and path not in OPEN:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, key = given.partition(b" ")
            if not hmac.compare_digest(key.strip(), self.key) or scheme.lower() != b"bearer":
                raise unauthorized()
        if allowed is None:
            known = ", ".join(sorted(PATHS))
            raise Refusal(404, "unknown_path", f"There is nothing at this address; there are {known}.", None)
        if method not in allowed:
            sentence = f"{path} is asked with {allowed[0]}."
            raise Refusal(405, "wrong_method", sentence, None, {"Allow": ", ".join(allowed)})

    def _check_room(self) -> None:
        """Raises Refusal where too many are worked on or wait for it."""
        if self.working >= WAITING:
            raise overloaded()

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        """The body, and what it adds to the bytes that are held. Raises Refusal."""
        headers = Headers(scope=scope)
        _check_kind(scope["path"], _kind(headers))  # before a byte of it is read
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > LIMIT:
            raise too_large()
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(READ_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise cut_off()
                    part = message.get("body", b"")
                    if self.held + len(part) > HELD:
                        raise overloaded("Too many uploads at a time")
                    parts.append(part)
                    size += len(part)
                    self.held += len(part)
                    if size > LIMIT:  # a body sent in chunks announces no length
                        raise too_large()
                    more = message.get("more_body", False)
        except BaseException as error:
            self.held -= size
            if isinstance(error, TimeoutError):
                raise too_slow() from None
            raise
        return (parts[0] if len(parts) == 1 else b"".join(parts)), size


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_kind(path: str, kind: str) -> None:
    raw = kind == "application/octet-stream" or (kind.startswith("image/") and path != BATCH_PATH)
    if kind and not raw and kind != "multipart/form-data":
        raise unread(kind, path)


async def _one(scope: Scope, body: bytes) -> bytes:
    """The bytes of the one image in the request. Raises Refusal."""
    kind = _check_there(scope, body)
    image = await _file_in_form(scope, body) if kind == "multipart/form-data" else body
    if not image:
        raise empty()
    return image


async def _batch_in(scope: Scope, body: bytes) -> list[bytes] | bytes:
    """The image files of the request, or the pixels of its images. Raises Refusal."""
    if _check_there(scope, body) == "multipart/form-data":
        return await _files_in_form(scope, body)
    count, rest = divmod(len(body), IMAGE_BYTES)
    if rest:
        raise wrong_length(len(body))
    _check_count(count)
    return body


def _check_there(scope: Scope, body: bytes) -> str:
    kind = _kind(Headers(scope=scope))
    if not body:
        raise missing(scope["path"])
    if not kind:
        sentence = f"The body has no content type. {_how(scope['path'])}"
        raise Refusal(415, "unsupported_media_type", sentence, "content-type")
    return kind


def _check_count(count: int) -> None:
    if count > BATCH:
        raise too_many_images(count)


async def _file_in_form(scope: Scope, body: bytes) -> bytes:
    found = await _fields(scope, body, 1)
    values = [value for name, value in found if name == FIELD]
    if values and isinstance(values[-1], bytes):
        return values[-1]
    if values:
        raise Refusal(400, "missing_image", f"The field '{FIELD}' must hold a file, not text. {_ONE}")
    raise Refusal(400, "missing_image", f"The form has no file in the field '{FIELD}' ({_names(found)}). {_ONE}")


async def _files_in_form(scope: Scope, body: bytes) -> list[bytes]:
    found = await _fields(scope, body, BATCH + 1)
    values = [value for name, value in found if name == FIELDS]
    files = [value for value in values if isinstance(value, bytes)]
    if not files or len(files) < len(values):
        sentence = f"The form must have files in fields '{FIELDS}', and no text ({_names(found)}). {_MANY}"
        raise Refusal(400, "missing_image", sentence, FIELDS)
    _check_count(len(files))
    return files


async def _fields(scope: Scope, body: bytes, files: int) -> list[tuple[str, bytes | str]]:
    """The form's fields in their order, a file as its bytes. Raises Refusal, also for more files than that."""
    request = Request({key: scope[key] for key in ("type", "method", "headers")}, _replay(body))
    try:
        async with request.form(max_files=files, max_fields=8) as form:
            return [
                (name, await value.read() if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        # KeyError: a form without a boundary.
        reason = getattr(error, "detail", None) or getattr(error, "message", None)
        raise (malformed(scope["path"], str(reason).rstrip(".")) if reason else malformed(scope["path"])) from None


def _names(found: Iterable[tuple[str, object]]) -> str:
    return f"fields: {', '.join(repr(name) for name in dict.fromkeys(name for name, _ in found)) or 'none'}"


def _how(path: str) -> str:
    return _MANY if path == BATCH_PATH else _ONE


def _field(path: str) -> str:
    return FIELDS if path == BATCH_PATH else FIELD


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
