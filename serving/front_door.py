"""ASGI middleware before BentoML: admits or refuses every request, reads its body, and counts the answer.

BentoML 1.4 has no upload limit (it ignores `max_request_size`), writes files to disk, fetches a URL in the place of a
file, chooses a parser by content type (pickle among them), and has three shapes of error. This module therefore reads
the whole body, within limits, and BentoML never parses one.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import measures, refusals, uploads
from serving.measures import VERSION_HEADER
from serving.refusals import BATCH_PATH, Refusal
from serving.uploads import LIMIT

LOG = logging.getLogger("bentoml.serving.front_door")
HELD = 128 * 2**20
"""The most bytes of all bodies in memory."""
WAITING = 32
"""The most requests that are computed or wait for it. Later requests are refused, so that nobody waits long."""
READ_SECONDS = 15
"""The longest time in which a body must arrive."""
ANSWER_SECONDS = 60
"""The longest time from the end of a request's headers to the first byte of its answer."""
UPLOAD = "mobilenet_pipeline.upload"
"""Key of the upload in the ASGI scope: the bytes of an image file; for a batch, a list of them or raw pixels."""
READS, POSTS = ("GET", "HEAD"), ("POST",)
PREDICTING = ("/predict", BATCH_PATH, "/compare")
"""The paths whose answers are recorded, and therefore whose failures are."""
HEALTH = ("/livez", "/readyz", "/healthz")
PATHS = {
    **dict.fromkeys(("/", "/docs", "/docs.json", "/schema.json", "/model", "/metrics", *HEALTH), READS),
    **dict.fromkeys((*PREDICTING, "/input"), POSTS),
}
STATIC = "/static_content/"
"""Scripts and styles of the OpenAPI page."""
# The demo page contains no data, and a browser that loads it has no token yet.
OPEN = ("/", *HEALTH)


class FrontDoor:
    """ASGI middleware: admits known requests, puts their upload into `scope[UPLOAD]`, and counts the answers.

    With a `key`, every path but those in OPEN needs it. `failed` is called with path and status of every upload that
    gets no prediction, except for one with a wrong key.
    """

    def __init__(
        self, app: ASGIApp, key: bytes | None = None, failed: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self.app, self.key, self.failed = app, key, failed
        self.held = self.working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # the service has none
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"] if scope["path"] in PATHS else "other"
        status, version, begun = 500, "", False
        measures.begin_request(path)

        async def counted(message: Message) -> None:
            nonlocal status, version, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                version = next((value.decode() for name, value in message["headers"] if name == VERSION_HEADER), "")
            await send(message)

        async def in_time(message: Message) -> None:
            if not begun:
                limit.reschedule(None)  # a slow reader gets the whole answer
            await counted(message)

        held = working = 0
        try:
            async with asyncio.timeout(ANSWER_SECONDS) as limit:
                self._admit(scope)
                if scope["method"] in POSTS:
                    self._check_room()  # before the body is read and parsed for nothing
                    body, held = await self._body(scope, receive)
                    self._check_room()  # a slow upload holds no place
                    self.working += (working := 1)
                    scope[UPLOAD] = await uploads.parse(scope, body)
                    del body  # the files of a form are copies
                    receive = uploads.replay(b"")
                await self.app(scope, receive, in_time)
        except Refusal as refusal:
            # The server reads the rest of the body and drops it, so that the client gets to read the answer.
            await refusal.response()(scope, receive, counted)
        except Exception:
            if begun:
                raise
            if limit.expired():
                LOG.warning("%s %s has no answer after %s s", scope["method"], scope["path"], ANSWER_SECONDS)
                await refusals.unanswered(ANSWER_SECONDS).response()(scope, receive, counted)
                return
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            await refusals.failed().response()(scope, receive, counted)
        finally:
            self.held -= held
            self.working -= working
            measures.count_request(path, status, version, time.perf_counter() - started)
            if scope["method"] in POSTS and path in PREDICTING and status >= 400 and status != 401:
                self.failed(path, status)

    def _admit(self, scope: Scope) -> None:
        """Raise Refusal if the key, the path or the method of the request is wrong."""
        path, method = scope["path"], scope["method"]
        static = path.startswith(STATIC) and ".." not in path
        allowed = READS if static else PATHS.get(path)
        if self.key and path not in OPEN:
            authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, key = authorization.partition(b" ")
            if not hmac.compare_digest(key.strip(), self.key) or scheme.lower() != b"bearer":
                raise refusals.unauthorized()
        if allowed is None:
            raise refusals.unknown_path(PATHS)
        if method not in allowed:
            raise refusals.wrong_method(path, allowed)

    def _check_room(self) -> None:
        """Raise Refusal if too many requests are computed or wait for it."""
        if self.working >= WAITING:
            raise refusals.overloaded()

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        """Return the body and the number of bytes that it adds to `held`. Raises Refusal."""
        uploads.check_headers(scope)  # before the first byte is read
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > LIMIT:
            raise refusals.too_large(LIMIT)
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(READ_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise refusals.cut_off()
                    part = message.get("body", b"")
                    if self.held + len(part) > HELD:
                        raise refusals.overloaded("Too many uploads arrive at the same time")
                    parts.append(part)
                    size += len(part)
                    self.held += len(part)
                    if size > LIMIT:  # a body in chunks declares no length
                        raise refusals.too_large(LIMIT)
                    more = message.get("more_body", False)
        except BaseException as error:
            self.held -= size
            if isinstance(error, TimeoutError):
                raise refusals.too_slow(READ_SECONDS) from None
            raise
        return (parts[0] if len(parts) == 1 else b"".join(parts)), size
