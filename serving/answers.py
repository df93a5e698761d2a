"""The shapes of what the service takes and answers, as its OpenAPI page shows them."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from pydantic import BaseModel, ConfigDict, Field


class Upload(bentoml.IODescriptor):
    """One image file; any size and colour mode."""

    image: Annotated[Path, ContentType("image/*")]
    """For the OpenAPI page a file; in the service the bytes that the front door has read."""


class Uploads(bentoml.IODescriptor):
    """Up to 256 image files."""

    images: list[Annotated[Path, ContentType("image/*")]]
    """In the service, what the front door has read: a list of files' bytes, or the bytes of all pixels."""


class Answered(BaseModel):
    """What a model says of one image. Confidence and probabilities are shares of 1."""

    class_: Annotated[str, Field(alias="class")]
    confidence: float
    probabilities: dict[str, float]


class Prediction(Answered):
    """What one model says of one image, and which model it was."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str


class Comparison(BaseModel):
    """What champion and challenger say of the same image; no challenger, no second answer."""

    champion: Prediction
    challenger: Prediction | None


class Fault(BaseModel):
    """Why there is no answer: a word for programs, a sentence for people, and the field that it is about."""

    code: str
    message: str
    field: str | None


class Refused(BaseModel):
    """What every refusal and fault has as its body."""

    error: Fault


class Predictions(BaseModel):
    """The images' answers in their order; where one cannot be read, its fault."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    predictions: list[Answered | Refused]
