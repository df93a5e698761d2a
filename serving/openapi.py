"""The OpenAPI document: BentoML's, with what it does not know: examples, errors, the key, and other addresses."""

import copy
from typing import Any

from mobilenet_pipeline import preprocess
from serving import front_door
from serving.answers import Refused
from serving.front_door import BATCH, BATCH_PATH, IMAGE_BYTES, Refusal

PREDICTION: dict[str, Any] = {
    "class": "frog",
    "confidence": 0.91,
    "probabilities": {
        "airplane": 0.01,
        "automobile": 0.01,
        "bird": 0.02,
        "cat": 0.01,
        "deer": 0.01,
        "dog": 0.01,
        "frog": 0.91,
        "horse": 0.01,
        "ship": 0.0,
        "truck": 0.01,
    },
}
NAMES = {"model_name": "cifar10-mobilenet", "model_version": "7"}
BAD = {"error": {"code": "not_an_image", "message": "This is not an image that can be read; …", "field": "images[1]"}}
MODEL = {
    "champion": {
        "name": "cifar10-mobilenet",
        "accuracy": 0.94,
        "version": "7",
        "run_id": "4c1f",
        "recipe": "cifar10",
        "candidate": "pretrained",
        "data_digest": "c88a",
        "git_commit": "ce9c",
        "sha256": "51d0",
        "class_names": [*PREDICTION["probabilities"]],
        "test": {"accuracy": 0.94, "loss": 0.19, "top3_accuracy": 0.99, "rows": 10_000},
        "verdict": {"promoted": True, "reason": "pretrained is promoted: …"},
    },
    "challenger": None,
    "refused": None,
}
EXAMPLES = {
    "/predict": PREDICTION | NAMES,
    BATCH_PATH: NAMES | {"predictions": [PREDICTION, BAD]},
    "/compare": {"champion": PREDICTION | NAMES, "challenger": None},
}
FAULTS = {
    400: "The request has no image, or none that can be read. Also `damaged`, `too_many_pixels`, `unknown_range`; of a "
    "batch, an image's own error stands at its place in the answer.",
    401: "SERVING_API_KEY is set, and the request has not got it.",
    408: "The upload takes too long.",
    413: "The upload is too large.",
    415: "The body is of a type that is not read here.",
    500: "A fault of the service.",
    503: "Too much is being worked on; `Retry-After` says when to come back.",
}
BENTOML_S = {"504": "No answer within 60 s; the body is not of this shape."}
_PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "32 by 32 pixels."}


def document(bentoml_s: dict[str, Any]) -> dict[str, Any]:
    """The whole document, from the one that BentoML makes of the service's APIs."""
    # BentoML hands out the same parts every time: what is written into them would be there the next time.
    made = copy.deepcopy(bentoml_s)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    refused = Refused.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(refused.pop("$defs", {}))
    schemas["Refused"] = refused
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{}, {"key": []}]
    paths = made["paths"]
    for path, example in EXAMPLES.items():
        post = paths[path]["post"]
        (good,) = (found for status, found in post["responses"].items() if str(status) == "200")
        post["responses"] = {"200": good, **_faults(refusals(path))}
        post["responses"]["200"]["content"]["application/json"]["example"] = example
    binary = {"schema": {"type": "string", "format": "binary"}}
    for path in ("/predict", "/compare"):
        paths[path]["post"]["requestBody"]["content"] |= {"image/*": binary, "application/octet-stream": binary}
    paths[BATCH_PATH]["post"]["requestBody"]["content"] |= {"application/octet-stream": binary}
    paths["/input"] = {
        "post": {
            "summary": "What the network sees of an image file.",
            "requestBody": copy.deepcopy(paths["/predict"]["post"]["requestBody"]),
            "responses": {"200": _PNG, **_faults(refusals("/input"))},
        }
    }
    paths["/model"] = {
        "get": {
            "summary": "Which versions answer, how good they are, and why they were promoted.",
            "responses": {
                "200": {
                    "description": "Champion and challenger.",
                    "content": {"application/json": {"schema": {"type": "object"}, "example": MODEL}},
                },
                "401": _faults([front_door.unauthorized()])["401"],
            },
        }
    }
    return made


def refusals(path: str) -> list[Refusal]:
    """What the address refuses, as it says so: one example of every kind."""
    faults = [
        front_door.missing(path),
        front_door.malformed(path),
        front_door.cut_off(),
        front_door.unauthorized(),
        front_door.too_slow(),
        front_door.too_large(),
        front_door.unread("text/plain", path),
        front_door.failed(),
        front_door.overloaded(),
    ]
    if path == BATCH_PATH:
        return [*faults, front_door.wrong_length(IMAGE_BYTES + 1), front_door.too_many_images(BATCH + 1)]
    try:
        preprocess.decode(b"no image")
    except preprocess.ImageError as error:
        faults += [front_door.empty(), Refusal(400, error.code, str(error))]
    return faults


def _faults(refused: list[Refusal]) -> dict[str, Any]:
    responses: dict[str, Any] = {status: {"description": sentence} for status, sentence in BENTOML_S.items()}
    for refusal in refused:
        answer = responses.setdefault(
            str(refusal.status),
            {
                "description": FAULTS[refusal.status],
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}, "examples": {}}},
            },
        )
        answer["content"]["application/json"]["examples"][refusal.code] = {"value": refusal.document()}
    return dict(sorted(responses.items()))
