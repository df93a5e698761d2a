"""The promoted model over HTTP.

`/predict`, `/predict_batch` and `/compare` are BentoML APIs, so its OpenAPI document and its clients have them.
`ShortWay` calls them without BentoML's dispatch. The other addresses are mounted Starlette routes, because a BentoML
API answers POST with JSON only. `front_door` alone reads what comes over the network.
"""

import asyncio
import base64
import functools
import hashlib
import io
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import orjson
from bentoml import get_current_service  # as an attribute of bentoml, every call would look it up by name
from bentoml._internal.server.http import traffic
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mobilenet_pipeline.inference import preprocess
from serving import measures, openapi, refusals, settings, uploads
from serving.answers import Comparison, Prediction, Predictions, Upload, Uploads
from serving.front_door import ANSWER_SECONDS, UPLOAD, FrontDoor
from serving.live import Live
from serving.measures import VERSION_HEADER
from serving.record import Answer, Fault, Record, answer_ids
from serving.refusals import BATCH_PATH, FIELDS, Refusal
from serving.served import Roles, Served

DESCRIPTION = """Classifies images.

Send one image file to `/predict` for the champion's answer, or to `/compare` for champion and challenger side by side.
Send many to `/predict_batch`. `GET /model` describes both versions. A refused request gets
`{"error": {"code", "message", "field"}}`.
"""
SMALL_BYTES, SMALL_PIXELS = 2**15, 2**14
"""The most bytes and pixels of an image file that is decoded in less time than a thread takes to take over."""
BATCH_PIXELS = 100_000_000
"""The most pixels of all files of a batch: four of the largest photographs."""
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""A page may load from this service, and talk to it, only."""
PYTHON = ".".join(map(str, sys.version_info[:2]))


def _current() -> "Classifier":
    service: Classifier = get_current_service()
    return service


def _record_fault(endpoint: str, status: int) -> None:
    with suppress(bentoml.exceptions.BentoMLException):  # the service has not started yet, and has no record
        _current().record_fault(endpoint, status)


def _describe() -> dict[str, Any]:
    live = _current().live
    models = {role: model.description() if model else None for role, model in live.roles.items()}
    return {**models, "refused": live.refused}


def html_page(name: str) -> Response:
    """Return a page of this folder, on which only its own scripts run."""
    html = (Path(__file__).parent / name).read_text(encoding="utf-8")
    inline = (hashlib.sha256(script.encode()).digest() for script in re.findall(r"<script>(.*?)</script>", html, re.S))
    hashes = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in inline)
    policy = POLICY.format(scripts=" ".join(["'self'", *hashes]))
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


async def describe_models(_: Request) -> Response:
    """GET /model: the served versions, their accuracy, and why they were promoted."""
    return JSONResponse(_describe())


async def show_input(request: Request) -> Response:
    """POST /input: an image file as the network sees it, a PNG."""
    service = _current()
    return await service.answer(service.png, request.scope[UPLOAD])


async def show_page(_: Request) -> Response:
    """GET /: the demo page."""
    return html_page("page.html")


async def show_docs(_: Request) -> Response:
    """GET /docs: the OpenAPI document, shown by the copy of Swagger UI in BentoML. Its own page loads a tag manager."""
    return html_page("docs.html")


async def describe_api(_: Request) -> Response:
    """GET /docs.json: the OpenAPI document."""
    service: Any = Classifier  # the decorators turn the class into a BentoML service
    return JSONResponse(openapi.document(service.openapi_spec.asdict(), _describe()))


async def count(_: Request) -> Response:
    """GET /metrics: what the service counts."""
    return Response(await asyncio.to_thread(measures.page), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("/", show_page),
    Route("/docs", show_docs),
    Route("/docs.json", describe_api),
    Route("/model", describe_models),
    Route("/metrics", count),
    Route("/input", show_input, methods=["POST"]),
]


class Addresses(Starlette):
    """The mounted addresses. BentoML dispatches a request that no route of a Starlette takes."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return the routes alone: the front door answers for their errors."""
        return self.router


class ShortWay:
    """ASGI middleware behind the front door: calls the API method of the path with the upload.

    BentoML's dispatch inspects the method's signature and opens a context for every request. That takes half a
    millisecond, a quarter of a request to a small network.
    """

    def __init__(self, app: ASGIApp, methods: dict[str, Callable[..., Awaitable[Response]]]) -> None:
        self.app, self.methods = app, methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if UPLOAD in scope and (method := self.methods.get(scope["path"])):
            response = await method(_current(), scope[UPLOAD])
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def behind_front_door(service: Any) -> Any:
    """Add the front door and the short way to a BentoML service, and drop two costs of every request."""
    # BentoML's timer of a request runs for `traffic.timeout`, answered or not: 120,000 timers at 2,000 requests/s. The
    # front door has one that ends with the answer.
    setattr(traffic, "TimeoutMiddleware", lambda app, timeout: app)  # noqa: B010
    # uvicorn builds a line of its access log for every answer as long as any logger above has a handler.
    logging.getLogger("uvicorn.access").propagate = False
    service.add_asgi_middleware(FrontDoor, key=settings.key(), failed=_record_fault)
    service.add_asgi_middleware(ShortWay, methods={api.route: api.func for api in service.apis.values()})
    return service


@behind_front_door
@bentoml.asgi_app(Addresses(routes=ROUTES))
@bentoml.service(
    description=DESCRIPTION,
    http={"host": "127.0.0.1"},
    # A worker keeps two cores busy: one thread speaks HTTP, the others decode and compute.
    workers=settings.processes(),
    traffic={"timeout": ANSWER_SECONDS},
    # The front door counts, with the model's version. Trace spans and a log line a request take as long as the model.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    # All packages are wheels: the image needs no compilers.
    image=bentoml.images.Image(base_image=f"python:{PYTHON}-slim", distro="none"),
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
class Classifier:
    """The service. Every worker has its own copies of the models."""

    def __init__(self) -> None:
        measures.prepare()
        folder, name = settings.record(), f"answers-{bentoml.server_context.worker_index or 1}.jsonl"
        try:
            self.live = Live(settings.live())
            self.record = Record(folder / name if folder else None, settings.keep_images())
        except (OSError, ValueError):
            sys.tracebacklimit = 0  # the process ends, and its log ends with the error's sentence
            raise
        # Decoding a photograph takes 0.1 s. On the event loop, it would delay every other answer.
        self.threads = ThreadPoolExecutor(settings.threads(), thread_name_prefix="answer")
        self.working = 0  # uploads in a thread or waiting for one; changed by the event loop alone
        # Python's default of 5 ms is longer than most answers take.
        sys.setswitchinterval(0.0005)
        _load_decoders()
        self.live.follow()

    @bentoml.on_shutdown
    def end(self) -> None:
        """Write the answers that wait to be recorded."""
        self.record.write()

    @bentoml.api(input_spec=Upload, output_spec=Prediction)
    async def predict(self, image: bytes) -> Response:
        """Classify an image file with the champion: class, confidence, all probabilities and a prediction set."""
        return await self.answer(self._predict, image, small=len(image) <= SMALL_BYTES)

    @bentoml.api(input_spec=Uploads, output_spec=Predictions)
    async def predict_batch(self, images: list[bytes] | bytes) -> Response:
        """Classify up to 256 images with the champion, in their order. An unreadable image gets its error."""
        return await self.answer(self._predict_batch, images)

    @bentoml.api(input_spec=Upload, output_spec=Comparison)
    async def compare(self, image: bytes) -> Response:
        """Classify an image file with champion and challenger; null without a challenger."""
        return await self.answer(self._compare, image)

    async def answer(self, respond: Callable[[Any, float], Response], upload: Any, small: bool = False) -> Response:
        """Return the response to the upload, computed in a thread; that of the refusal if there is one.

        `respond` also gets the time at which the upload was complete, of `time.perf_counter`. A `small` upload, an
        image file of few bytes, is opened first. If it has few pixels, too, and the network is quick, this thread
        computes: another one would take as long to take over.
        """
        complete = time.perf_counter()
        self.working += 1
        try:
            if small and _champion(self.live.roles).is_quick:
                upload = preprocess.open_image(upload)
                if upload.width * upload.height <= SMALL_PIXELS:
                    await asyncio.sleep(0)  # all requests that have arrived begin first, so that they are counted
                    return respond(upload, complete)
            return await asyncio.get_running_loop().run_in_executor(self.threads, respond, upload, complete)
        except preprocess.ImageError as error:
            return refusals.unreadable(error).response()
        except Refusal as refusal:
            return refusal.response()
        finally:
            self.working -= 1

    def record_fault(self, endpoint: str, status: int) -> None:
        """Record a request, or a file of a batch, without an answer."""
        self.record.fail(Fault(endpoint, _champion(self.live.roles).names["model_name"], status))

    def png(self, data: bytes, _: float) -> Response:
        """Return an image file as the champion sees it, a PNG."""
        file, champion = io.BytesIO(), _champion(self.live.roles)
        Image.fromarray(preprocess.decode(data, champion.size, champion.resize)).save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    def _predict(self, image: bytes | Image.Image, complete: float) -> Response:
        champion = _champion(self.live.roles)
        opened = preprocess.open_image(image) if isinstance(image, bytes) else image
        pixels = preprocess.shrink(opened, champion.size, champion.resize)[None]
        (prediction,) = self._ask(champion, pixels, "/predict", complete)
        return _json(prediction | champion.says, champion)

    def _compare(self, data: bytes, complete: float) -> Response:
        roles = self.live.roles
        champion = _champion(roles)
        # Decoding takes long, and the roles seldom differ in it.
        decode = functools.cache(lambda size, resize: preprocess.decode(data, size, resize)[None])
        comparison = {
            role: self._ask(model, decode(model.size, model.resize), "/compare", complete)[0] | model.says
            if model
            else None
            for role, model in roles.items()
        }
        return _json(comparison, champion)

    def _predict_batch(self, upload: list[bytes] | bytes, complete: float) -> Response:
        champion = _champion(self.live.roles)
        if isinstance(upload, bytes):
            predictions = self._ask(champion, uploads.pixels(upload, champion.image_shape), BATCH_PATH, complete)
        else:
            predictions = self._ask_readable(champion, _decode_all(upload, champion), complete)
        return _json(champion.says | {"predictions": predictions}, champion)

    def _ask_readable(
        self, model: Served, images: Sequence[np.ndarray | Refusal], complete: float
    ) -> list[dict[str, Any]]:
        pixels = [image for image in images if not isinstance(image, Refusal)]
        predictions = iter(self._ask(model, np.stack(pixels), BATCH_PATH, complete) if pixels else [])
        for image in images:
            if isinstance(image, Refusal):
                self.record_fault(BATCH_PATH, image.status)
        return [image.document() if isinstance(image, Refusal) else next(predictions) for image in images]

    def _ask(self, model: Served, pixels: np.ndarray, endpoint: str, complete: float) -> list[dict[str, Any]]:
        """Return the model's predictions for images (n, h, w, 3) with their ids, and count and record them."""
        found = model.predict(pixels, alone=self.working == 1)
        predictions = [{"answer_id": name} | one for name, one in zip(answer_ids(len(found)), found, strict=True)]
        measures.count_answers(endpoint, model.version, [prediction["class"] for prediction in predictions])
        self.record.add(Answer(endpoint, model.names, predictions, pixels, 1000 * (time.perf_counter() - complete)))
        return predictions


def _champion(roles: Roles) -> Served:
    champion = roles["champion"]
    assert champion is not None  # every Bento has one
    return champion


def _decode_all(files: list[bytes], model: Served) -> list[np.ndarray | Refusal]:
    images: list[np.ndarray | Refusal] = []
    left = BATCH_PIXELS
    for index, data in enumerate(files):
        try:
            image = preprocess.open_image(data)
            left -= image.width * image.height
            if left < 0:
                sentence = f"The images up to this one have more than {BATCH_PIXELS // 10**6} million pixels together."
                raise preprocess.ImageError("too_many_pixels", sentence)
            images.append(preprocess.shrink(image, model.size, model.resize))
        except preprocess.ImageError as error:
            images.append(refusals.unreadable(error, f"{FIELDS}[{index}]"))
    return images


def _json(document: dict[str, Any], model: Served) -> Response:
    body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers={VERSION_HEADER.decode(): model.version})


def _load_decoders() -> None:
    """Let Pillow load its plugins, which it does once."""
    with suppress(preprocess.ImageError):
        preprocess.open_image(b"no image")
