"""The promoted model over HTTP.

`/predict`, `/predict_batch` and `/compare` are BentoML APIs, so they stand in its OpenAPI page, but requests come to
them by a shorter way than BentoML's; they return ready responses. The other addresses are mounted Starlette routes,
because a BentoML API answers POST with JSON only. What comes in over the network is read by `front_door` and by nothing
else.
"""

import asyncio
import io
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import _bentoml_impl.server
import bentoml
import numpy as np
import orjson
from bentoml import get_current_service  # found by name, every time, where it is bentoml's attribute
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import IMAGE_SHAPE
from serving import measures, openapi
from serving.answers import Comparison, Prediction, Predictions, Upload, Uploads
from serving.front_door import BATCH_PATH, FIELDS, UPLOAD, FrontDoor, Refusal
from serving.live import Live
from serving.measures import VERSION_HEADER
from serving.record import Answer, Record
from serving.served import Served
from serving.workers import THREADS, WORKERS

DESCRIPTION = """Tells what is on an image.

Send an image file to `/predict` for the champion's answer, many to `/predict_batch`, one to `/compare` for champion and
challenger side by side; `GET /model` says which versions these are. A refused request gets
`{"error": {"code", "message", "field"}}`.
"""
BATCH_PIXELS = 100_000_000
"""What the files of one batch may have together: as much as four of the largest photographs."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'"
)
"""The page may talk to this service, and to nobody else."""
PYTHON = ".".join(map(str, sys.version_info[:2]))
T = TypeVar("T")


def _current() -> "Classifier":
    service: Classifier = get_current_service()
    return service


async def describe_models(_: Request) -> Response:
    """GET /model: which versions answer, how good they are and why they were promoted."""
    live = _current().live
    found = {role: model.description() if model else None for role, model in live.roles.items()}
    return JSONResponse({**found, "refused": live.refused})


async def show_input(request: Request) -> Response:
    """POST /input: what the network sees of an image file, a PNG of 32 by 32 pixels."""
    try:
        png = await _current().work(_png, request.scope[UPLOAD])
    except Refusal as refusal:
        return refusal.response()
    return Response(png, media_type="image/png")


async def show_page(_: Request) -> Response:
    """GET /: a page to try it."""
    return FileResponse(Path(__file__).parent / "page.html", headers={"Content-Security-Policy": POLICY})


async def show_docs(_: Request) -> Response:
    """GET /docs: BentoML's page of the OpenAPI document."""
    return FileResponse(Path(_bentoml_impl.server.__file__).parent / "main-openapi.html")


async def describe_api(_: Request) -> Response:
    """GET /docs.json: the OpenAPI document."""
    service: Any = Classifier  # what the decorators make of the class
    return JSONResponse(openapi.document(service.openapi_spec.asdict()))


async def count(_: Request) -> Response:
    """GET /metrics."""
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
    """The mounted addresses. BentoML looks further only where a Starlette has no route for a request."""

    def build_middleware_stack(self) -> ASGIApp:
        """Nothing around the routes: the front door answers for their faults."""
        return self.router


class ShortWay:
    """ASGI middleware behind the front door: from an upload right to the API method that answers it.

    BentoML's way there, which looks the method's signature up and opens a context for every request, takes half a
    millisecond: with a small network, a quarter of a request.
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
    """Let every request pass the front door first."""
    service.add_asgi_middleware(FrontDoor, key=os.environ.get("SERVING_API_KEY"))
    service.add_asgi_middleware(ShortWay, methods={api.route: api.func for api in service.apis.values()})
    return service


@behind_front_door
@bentoml.asgi_app(Addresses(routes=ROUTES))
@bentoml.service(
    description=DESCRIPTION,
    http={"host": "127.0.0.1"},
    # A worker keeps two cores busy: a thread that speaks HTTP, and those that decode and compute.
    workers=WORKERS,
    traffic={"timeout": 60},
    # The front door counts, with the model's version; spans that nobody collects and a line a request take as long as
    # the model does.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    # All packages come ready built: the image needs no compilers.
    image=bentoml.images.Image(base_image=f"python:{PYTHON}-slim", distro="none"),
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
class Classifier:
    """The service: in every worker one copy of each model."""

    def __init__(self) -> None:
        measures.prepare()
        pointer, record = os.environ.get("SERVING_LIVE"), os.environ.get("SERVING_RECORD")
        self.live = Live(Path(pointer) if pointer else None)
        name = f"answers-{bentoml.server_context.worker_index or 1}.jsonl"
        self.record = Record(Path(record) / name if record else None, os.environ.get("SERVING_KEEP_IMAGES") == "1")
        # Decoding a photograph takes a tenth of a second: that long nobody else would be answered.
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="answer")
        self.working = 0  # uploads that are in a thread or wait for one; the event loop alone changes it
        # Threads take turns every 5 ms by default, which is longer than most answers take.
        sys.setswitchinterval(0.0005)
        _see_no_image()
        self.live.follow()

    @bentoml.on_shutdown
    def end(self) -> None:
        """Leave no answer off the record: who is told to end still writes what waits."""
        self.record.write()

    @bentoml.api(input_spec=Upload, output_spec=Prediction)
    async def predict(self, image: bytes) -> Response:
        """The champion's class, its confidence and all probabilities for an image file."""
        return await self.answer(self._predict, image)

    @bentoml.api(input_spec=Uploads, output_spec=Predictions)
    async def predict_batch(self, images: list[bytes] | bytes) -> Response:
        """The champion's answers for up to 256 images, in their order; an image that cannot be read gets its error.

        Image files as multipart/form-data, or application/octet-stream with 3,072 bytes an image (32 rows of 32 RGB
        pixels).
        """
        return await self.answer(self._predict_batch, images)

    @bentoml.api(input_spec=Upload, output_spec=Comparison)
    async def compare(self, image: bytes) -> Response:
        """Champion's and challenger's answers for the same image file; null where there is no challenger."""
        return await self.answer(self._compare, image)

    async def answer(self, how: Callable[[Any], Response], upload: Any) -> Response:
        """The response to an upload, worked out in a thread; a Refusal's, where it cannot be used."""
        try:
            return await self.work(how, upload)
        except Refusal as refusal:
            return refusal.response()

    async def work(self, how: Callable[[Any], T], upload: Any) -> T:
        """Do it in a thread. Raises Refusal where the upload is no image."""
        self.working += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, how, upload)
        except preprocess.ImageError as error:
            raise Refusal(400, error.code, str(error)) from None
        finally:
            self.working -= 1

    def _predict(self, data: bytes) -> Response:
        champion, pixels = self._champion(), preprocess.decode(data)[None]
        (found,) = self._ask(champion, pixels, "/predict")
        return _json(found | champion.names, champion)

    def _compare(self, data: bytes) -> Response:
        roles, pixels = self.live.roles, preprocess.decode(data)[None]
        found = {
            role: self._ask(model, pixels, "/compare")[0] | model.names if model else None
            for role, model in roles.items()
        }
        return _json(found, roles["champion"])

    def _predict_batch(self, upload: list[bytes] | bytes) -> Response:
        champion = self._champion()
        if isinstance(upload, bytes):
            pixels = np.frombuffer(upload, np.uint8).reshape(-1, *IMAGE_SHAPE)
            predictions = self._ask(champion, pixels, BATCH_PATH)
        else:
            predictions = self._ask_readable(champion, _decode_each(upload))
        return _json(champion.names | {"predictions": predictions}, champion)

    def _ask_readable(self, model: Served, images: Sequence[np.ndarray | Refusal]) -> list[dict[str, Any]]:
        pixels = [image for image in images if not isinstance(image, Refusal)]
        found = iter(self._ask(model, np.stack(pixels), BATCH_PATH) if pixels else [])
        return [image.document() if isinstance(image, Refusal) else next(found) for image in images]

    def _ask(self, model: Served, pixels: np.ndarray, endpoint: str) -> list[dict[str, Any]]:
        """What the model says of the images (n, 32, 32, 3), counted and kept on record."""
        found = model.predict(pixels, alone=self.working == 1)
        measures.count_answers(endpoint, model.version, [one["class"] for one in found])
        self.record.add(Answer(endpoint, model.names, found, pixels))
        return found

    def _champion(self) -> Served:
        champion = self.live.roles["champion"]
        assert champion is not None  # nothing is packaged without one
        return champion


def _decode_each(files: list[bytes]) -> list[np.ndarray | Refusal]:
    images: list[np.ndarray | Refusal] = []
    left = BATCH_PIXELS
    for index, data in enumerate(files):
        try:
            image = preprocess.open_image(data)
            left -= image.width * image.height
            if left < 0:
                sentence = f"The images up to this have more than {BATCH_PIXELS // 10**6} million pixels together."
                raise preprocess.ImageError("too_many_pixels", sentence)
            images.append(preprocess.shrink(image))
        except preprocess.ImageError as error:
            images.append(Refusal(400, error.code, str(error), f"{FIELDS}[{index}]"))
    return images


def _png(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(preprocess.decode(data)).save(file, "PNG")
    return file.getvalue()


def _json(document: dict[str, Any], model: Served | None) -> Response:
    headers = {VERSION_HEADER.decode(): model.version} if model else None
    body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers=headers)


def _see_no_image() -> None:
    """Make Pillow look for all its plugins, which it does once."""
    try:
        preprocess.decode(b"no image")
    except preprocess.ImageError:
        return
