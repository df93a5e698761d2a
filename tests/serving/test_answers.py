"""The documented types of answers, held against the running service."""

from collections.abc import Callable

import pytest
from bento_fixtures import Service
from pydantic import BaseModel

from serving.answers import Comparison, Prediction, Predictions, Refused

Encode = Callable[..., bytes]


@pytest.mark.parametrize(("path", "type_"), [("/predict", Prediction), ("/compare", Comparison)])
def test_an_answer_has_the_documented_type(service: Service, encode: Encode, path: str, type_: type[BaseModel]) -> None:
    answer = service.ask("POST", path, files={"image": encode()}).json()
    assert type_.model_validate(answer).model_dump(by_alias=True) == answer


def test_a_batch_has_the_documented_type(service: Service, encode: Encode) -> None:
    files = [("images", encode()), ("images", b"no image")]
    answer = service.ask("POST", "/predict_batch", files=files).json()
    assert Predictions.model_validate(answer).model_dump(by_alias=True) == answer


def test_a_refusal_has_the_documented_type(service: Service) -> None:
    answer = service.ask("POST", "/predict").json()
    assert Refused.model_validate(answer).model_dump() == answer
