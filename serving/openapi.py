"""The OpenAPI document: BentoML's, with examples, errors, the key, and the addresses that BentoML does not know.

Its image size, class names and versions are those of the models that are served now.
"""

import copy
import json
import math
import re
from typing import Any

from mobilenet_pipeline.inference import preprocess
from serving import refusals
from serving.answers import Refused
from serving.front_door import ANSWER_SECONDS, READ_SECONDS
from serving.refusals import BATCH_PATH, Refusal
from serving.uploads import BATCH, LIMIT

BAD = {"error": {"code": "not_an_image", "message": "This is not an image that can be read; …", "field": "images[1]"}}
FAULTS = {
    400: "The request has no image, or an unreadable image. Further codes are `damaged`, `too_many_pixels` and "
    "`unknown_range`. In a batch, an unreadable image has its error at its place in the answer.",
    401: "SERVING_API_KEY is set, and the request does not have the key.",
    408: "The upload takes too long.",
    413: "The upload is too large.",
    415: "The content type is not supported, or the body is compressed.",
    500: "The service failed.",
    503: "The service is full; `Retry-After` gives the seconds to wait.",
    504: "The service was too slow.",
}


def document(bentoml_s: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Return the whole document from BentoML's, and from the answer of GET /model."""
    # BentoML returns the same objects every time, and must not see these changes.
    made = copy.deepcopy(bentoml_s)
    made["openapi"] = "3.1.0"  # its schemas are pydantic's, in the dialect of 3.1, whatever BentoML says
    made["info"].pop("contact", None)  # BentoML's makers
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    refused = Refused.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(refused.pop("$defs", {}))
    schemas["Refused"] = refused
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{}, {"key": []}]
    paths = made["paths"]
    shape = tuple(models["champion"]["image_shape"])
    for path, example in _examples(models["champion"]).items():
        post = paths[path]["post"]
        (good,) = (answer for status, answer in post["responses"].items() if str(status) == "200")
        post["responses"] = {"200": good, **_faults(examples_of_refusals(path, shape))}
        post["responses"]["200"]["content"]["application/json"]["example"] = example
    binary = {"schema": {"type": "string", "format": "binary"}}
    for path in ("/predict", "/compare"):
        paths[path]["post"]["requestBody"]["content"] |= {"image/*": binary, "application/octet-stream": binary}
    batch = paths[BATCH_PATH]["post"]
    batch["requestBody"]["content"] |= {"application/octet-stream": binary}
    batch["description"] = (
        f"{batch['description'].strip()}\n\nSend image files as multipart/form-data, or raw pixels as "
        f"application/octet-stream, {math.prod(shape):,} bytes an image ({shape[0]} rows of {shape[1]} RGB pixels)."
    )
    paths["/input"] = {
        "post": {
            "summary": "The image as the network sees it.",
            "requestBody": copy.deepcopy(paths["/predict"]["post"]["requestBody"]),
            "responses": {
                "200": {"content": {"image/png": binary}, "description": f"{shape[1]} by {shape[0]} pixels."},
                **_faults(examples_of_refusals("/input", shape)),
            },
        }
    }
    paths["/model"] = {
        "get": {
            "summary": "The versions that answer, their accuracy, and why they were promoted.",
            "responses": {
                "200": {
                    "description": "Champion and challenger.",
                    "content": {"application/json": {"schema": {"type": "object"}, "example": models}},
                },
                "401": _faults([refusals.unauthorized()])["401"],
            },
        }
    }
    _drop_unused(made)
    return made


def _drop_unused(document: dict[str, Any]) -> None:
    """Remove the schemas that nothing refers to: BentoML's of uploads have a type that JSON Schema does not know."""
    schemas = document["components"]["schemas"]
    needed: set[str] = set()
    waiting = [document["paths"]]
    while waiting:
        names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(waiting.pop()))) - needed
        needed |= names
        waiting += [schemas[name] for name in names]
    document["components"]["schemas"] = {name: schema for name, schema in schemas.items() if name in needed}


def examples_of_refusals(path: str, image_shape: tuple[int, ...]) -> list[Refusal]:
    """Return one example of every refusal of the address, as the service words it."""
    examples = [
        refusals.missing(path),
        refusals.malformed(path),
        refusals.cut_off(),
        refusals.unauthorized(),
        refusals.too_slow(READ_SECONDS),
        refusals.too_large(LIMIT),
        refusals.unsupported("text/plain", path),
        refusals.encoded("gzip"),
        refusals.failed(),
        refusals.overloaded(),
        refusals.unanswered(ANSWER_SECONDS),
    ]
    if path == BATCH_PATH:
        count = math.prod(image_shape) + 1
        return [*examples, refusals.wrong_length(count, image_shape), refusals.too_many_images(BATCH + 1, BATCH)]
    try:
        preprocess.open_image(b"no image")
    except preprocess.ImageError as error:
        examples += [refusals.empty(), refusals.unreadable(error)]
    return examples


def _examples(champion: dict[str, Any]) -> dict[str, Any]:
    """Return an example of the answer of every address that takes images, {path: document}."""
    first, *others = champion["class_names"]
    rest = round(0.1 / (1 + len(others)), 4)
    best = round(1 - len(others) * rest, 4)
    shares = {first: best, **dict.fromkeys(others, rest)}
    coverage = champion["coverage"]
    answered = {
        "answer_id": "5f2b9c1e7a40d836",
        "class": first,
        "confidence": best,
        "probabilities": shares,
        "prediction_set": None if coverage is None else [first],
        "unfamiliar": None if coverage is None else False,
    }
    names = {"model_name": champion["name"], "model_version": champion["version"], "coverage": coverage}
    return {
        "/predict": answered | names,
        BATCH_PATH: names | {"predictions": [answered, BAD]},
        "/compare": {"champion": answered | names, "challenger": None},
    }


def _faults(examples: list[Refusal]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for refusal in examples:
        answer = responses.setdefault(
            str(refusal.status),
            {
                "description": FAULTS[refusal.status],
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}, "examples": {}}},
            },
        )
        answer["content"]["application/json"]["examples"][refusal.code] = {"value": refusal.document()}
    return dict(sorted(responses.items()))
