"""The shapes of what the service answers, as its OpenAPI page shows them."""

from pathlib import Path
from typing import Annotated, Self

import bentoml
from _bentoml_impl.serde import Serde
from bentoml.validators import ContentType
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from serving.front_door import UPLOAD


class Upload(bentoml.IODescriptor):
    """One image file; any size and colour mode."""

    image: Annotated[Path, ContentType("image/*")]
    """For the OpenAPI page a file; in the service the bytes that the front door has read."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: Serde) -> Self:
        """Take what the front door left, instead of BentoML's own parsers."""
        return cls.model_construct(image=request.scope[UPLOAD])


class Prediction(BaseModel):
    """What one model says of one image. Confidence and probabilities are shares of 1."""

    model_config = ConfigDict(protected_namespaces=())

    class_: Annotated[str, Field(alias="class")]
    confidence: float
    probabilities: dict[str, float]
    model_name: str
    model_version: str


class Comparison(BaseModel):
    """What champion and challenger say of the same image; no challenger, no second answer."""

    champion: Prediction
    challenger: Prediction | None
