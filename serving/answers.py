"""The types of requests and answers, as the OpenAPI page shows them."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from pydantic import BaseModel, ConfigDict, Field


class Upload(bentoml.IODescriptor):
    """One image file of any size and colour mode."""

    image: Annotated[Path, ContentType("image/*")]
    """A file on the OpenAPI page; in the service, the bytes that the front door has read."""


class Uploads(bentoml.IODescriptor):
    """Up to 256 image files."""

    images: list[Annotated[Path, ContentType("image/*")]]
    """In the service, what the front door has read: a list of the files' bytes, or the raw pixels of all images."""


class Answered(BaseModel):
    """A model's answer for one image. Confidence and probabilities are between 0 and 1.

    The record of answers has the same id, so that a true class that is known later finds its answer. `prediction_set`
    has the class and every other class that cannot be ruled out, the most probable first; a share `coverage` of the
    sets contains the true class. `unfamiliar` is true for an image unlike the training images: its answer means little.
    Both are null if the version was registered by an earlier release; without coverage in the recipe, the set is null.
    """

    answer_id: str
    class_: Annotated[str, Field(alias="class")]
    confidence: float
    probabilities: dict[str, float]
    prediction_set: list[str] | None
    unfamiliar: bool | None


class Prediction(Answered):
    """A model's answer for one image, with the model's name and version, and the coverage of its prediction sets."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    coverage: float | None


class Comparison(BaseModel):
    """The answers of champion and challenger for the same image; null without a challenger."""

    champion: Prediction
    challenger: Prediction | None


class Fault(BaseModel):
    """Why there is no answer: a code for programs, a sentence for people, and the field that it is about."""

    code: str
    message: str
    field: str | None


class Refused(BaseModel):
    """The body of every refusal and every error."""

    error: Fault


class Predictions(BaseModel):
    """The answers for all images in their order; an unreadable image has an error instead."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    coverage: float | None
    predictions: list[Answered | Refused]
