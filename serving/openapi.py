"""The OpenAPI document: BentoML's, with what it does not know: examples, errors, the key, and other addresses."""

import copy
from typing import Any

from serving.answers import Refused
from serving.front_door import BATCH, BATCH_PATH, LIMIT, READ_SECONDS

PREDICTION = {
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
EXAMPLES = {
    "/predict": PREDICTION | NAMES,
    BATCH_PATH: NAMES | {"predictions": [PREDICTION, BAD]},
    "/compare": {"champion": PREDICTION | NAMES, "challenger": None},
}
MIB = LIMIT // 2**20
FAULTS = {
    "400": ("missing_image", "The request has no image, an empty one, or a form that cannot be read."),
    "401": ("unauthorized", "SERVING_API_KEY is set, and the request has not got it."),
    "408": ("too_slow", f"The upload took more than {READ_SECONDS} s."),
    "413": ("too_many_bytes", f"More than {MIB} MiB, or more than {BATCH} images."),
    "415": ("unsupported_media_type", "The body is of a type that is not read here."),
    "422": ("not_an_image", "The file is no image, damaged, or has too many pixels."),
    "503": ("overloaded", "Too much is being worked on; `Retry-After` says when to come back."),
}
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
        post["responses"] = {"200": good, **_faults()}
        post["responses"]["200"]["content"]["application/json"]["example"] = example
    binary = {"schema": {"type": "string", "format": "binary"}}
    for path in ("/predict", "/compare"):
        paths[path]["post"]["requestBody"]["content"] |= {"image/*": binary, "application/octet-stream": binary}
    paths[BATCH_PATH]["post"]["requestBody"]["content"] |= {"application/octet-stream": binary}
    paths["/input"] = {
        "post": {
            "summary": "What the network sees of an image file.",
            "requestBody": copy.deepcopy(paths["/predict"]["post"]["requestBody"]),
            "responses": {"200": _PNG, **_faults()},
        }
    }
    paths["/model"] = {
        "get": {
            "summary": "Which versions answer, how good they are, and why they were promoted.",
            "responses": {
                "200": {
                    "description": "Champion and challenger.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                "401": _faults()["401"],
            },
        }
    }
    return made


def _faults() -> dict[str, Any]:
    return {
        status: {
            "description": sentence,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Refused"},
                    "example": {"error": {"code": code, "message": sentence, "field": "image"}},
                }
            },
        }
        for status, (code, sentence) in FAULTS.items()
    }
