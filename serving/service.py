"""The promoted model over HTTP.

`/predict` and `/compare` are BentoML APIs, so they stand in its OpenAPI page and its client knows them; they return
ready responses, because BentoML's own errors have other shapes. `GET /model` is a mounted Starlette route, because a
BentoML API answers POST only. What comes in over the network is read by `front_door` and by nothing else.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mobilenet_pipeline import preprocess
from serving.answers import Comparison, Prediction, Upload
from serving.front_door import FrontDoor, Refusal
from serving.served import Served, load_served

DESCRIPTION = """Tells what is on an image.

Send an image file to `/predict` for the champion's answer, to `/compare` for champion and challenger side by side;
`GET /model` says which versions these are. A refused request gets `{"error": {"code", "message", "field"}}`.
"""
INLINE_PIXELS = 256 * 256
"""An image up to this size is decoded within a millisecond or so: less than handing it to a thread costs the others."""


async def describe_models(_: Request) -> Response:
    """GET /model: which versions answer, how good they are and why they were promoted."""
    served = bentoml.get_current_service().served
    return JSONResponse({role: model.description() if model else None for role, model in served.items()})


def behind_front_door(service: Any) -> Any:
    """Let every request pass the front door first."""
    service.add_asgi_middleware(FrontDoor)
    return service


@behind_front_door
@bentoml.asgi_app(Starlette(routes=[Route("/model", describe_models)]))
@bentoml.service(
    description=DESCRIPTION,
    http={"host": "127.0.0.1"},
    traffic={"timeout": 30},
)
class Classifier:
    """The service: one worker, one copy of each model."""

    def __init__(self) -> None:
        self.served: dict[str, Served | None] = load_served()
        # Decoding a photograph takes a tenth of a second: that long nobody else would be answered.
        self.decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decoder")
        self._warm_up()

    @bentoml.api(input_spec=Upload, output_spec=Prediction)
    async def predict(self, image: bytes) -> Response:
        """The champion's class, its confidence and all probabilities for an image file."""
        try:
            return _json(self._ask("champion", await self._pixels(image)))
        except Refusal as refusal:
            return refusal.response()

    @bentoml.api(input_spec=Upload, output_spec=Comparison)
    async def compare(self, image: bytes) -> Response:
        """Champion's and challenger's answers for the same image file; null where there is no challenger."""
        try:
            pixels = await self._pixels(image)
        except Refusal as refusal:
            return refusal.response()
        return _json({role: self._ask(role, pixels) for role in self.served})

    async def _pixels(self, data: bytes) -> np.ndarray:
        """The image as model input uint8 (1, 32, 32, 3). Raises Refusal."""
        try:
            image = preprocess.open_image(data)
            if image.width * image.height <= INLINE_PIXELS:
                return preprocess.shrink(image)[None]
            loop = asyncio.get_running_loop()
            return (await loop.run_in_executor(self.decoders, preprocess.shrink, image))[None]
        except preprocess.ImageError as error:
            raise Refusal(422, error.code, str(error)) from None

    def _ask(self, role: str, pixels: np.ndarray) -> dict[str, Any] | None:
        model = self.served[role]
        return model.answer(pixels) if model else None

    def _warm_up(self) -> None:
        """Do everything once, so that who is told "ready" gets the first answer as fast as all others."""
        for model in self.served.values():
            if model:
                model.answer(np.zeros((1, preprocess.SIDE, preprocess.SIDE, 3), np.uint8))
        try:
            preprocess.decode(b"no image: makes Pillow look for all its plugins")
        except preprocess.ImageError:
            return


def _json(document: dict[str, Any] | None) -> Response:
    return Response(json.dumps(document), media_type="application/json")
