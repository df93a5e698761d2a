"""Every refusal of the service: an HTTP status, a code for programs and a sentence for people.

The OpenAPI document shows those of the endpoints as examples.
"""

import math
from collections.abc import Iterable

from starlette.responses import JSONResponse, Response

from mobilenet_pipeline.inference.preprocess import ImageError

FIELD, FIELDS = "image", "images"
"""The form field of one image, and that of every image of a batch."""
BATCH_PATH = "/predict_batch"
_ONE = f"Send the image as multipart/form-data in the field '{FIELD}', or as the body with a content type of image/*."
_MANY = (
    f"Send the images as multipart/form-data, each in a field '{FIELDS}', or their RGB bytes, row by row, as "
    "application/octet-stream; GET /model gives the shape of an image."
)


class Refusal(Exception):
    """A refused request: an HTTP status, a code for programs and a sentence for people."""

    def __init__(
        self, status: int, code: str, sentence: str, field: str | None = FIELD, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.code, self.field, self.headers = status, code, field, headers

    def document(self) -> dict[str, dict[str, str | None]]:
        """Return the refusal as JSON: {"error": {"code", "message", "field"}}."""
        return {"error": {"code": self.code, "message": str(self), "field": self.field}}

    def response(self) -> Response:
        """Return the refusal as an HTTP answer."""
        return JSONResponse(self.document(), self.status, self.headers)


def missing(path: str) -> Refusal:
    """400 for a request without a body."""
    return Refusal(400, "missing_image", f"The request has no image. {_how(path)}", _field(path))


def text_field() -> Refusal:
    """400 for a text in the field that must hold a file."""
    why = f"The field '{FIELD}' must hold a file, not text; its part has no file name and no content type of image/*."
    return Refusal(400, "missing_image", f"{why} {_ONE}")


def missing_field(names: Iterable[str]) -> Refusal:
    """400 for a form without the image's field; `names` are the fields that it has."""
    return Refusal(400, "missing_image", f"The form has no file in the field '{FIELD}' ({_list(names)}). {_ONE}")


def missing_files(names: Iterable[str]) -> Refusal:
    """400 for a batch form without files, or with text among them; `names` are the fields that it has."""
    sentence = f"The form must have files in fields '{FIELDS}', and no text ({_list(names)}). {_MANY}"
    return Refusal(400, "missing_image", sentence, FIELDS)


def empty() -> Refusal:
    """400 for a file without bytes."""
    return Refusal(400, "empty", "The file is empty.")


def unreadable(error: ImageError, field: str = FIELD) -> Refusal:
    """400 for an unreadable image, with the code and the sentence of the error."""
    return Refusal(400, error.code, str(error), field)


def malformed(path: str, reason: str = "Missing boundary in multipart") -> Refusal:
    """400 for a multipart form that cannot be parsed."""
    return Refusal(400, "malformed_form", f"The form cannot be read ({reason}). {_how(path)}", _field(path))


def cut_off() -> Refusal:
    """400 for an upload that ends too early."""
    return Refusal(400, "cut_off", "The upload ended before its announced length.")


def wrong_length(count: int, image_shape: tuple[int, ...]) -> Refusal:
    """400 for raw pixels of `count` bytes that do not fill the last image (h, w, 3)."""
    rows, columns = image_shape[:2]
    sentence = (
        f"{count:,} bytes are not a whole number of images; an image has {math.prod(image_shape):,} bytes "
        f"({rows} rows of {columns} RGB pixels)."
    )
    return Refusal(400, "wrong_length", sentence, FIELDS)


def unauthorized() -> Refusal:
    """401 for a request without the key."""
    sentence = "This service needs a key; send the header 'Authorization: Bearer KEY'."
    return Refusal(401, "unauthorized", sentence, "authorization", {"WWW-Authenticate": "Bearer"})


def unknown_path(known: Iterable[str]) -> Refusal:
    """404 for an address that the service does not have."""
    return Refusal(404, "unknown_path", f"This address does not exist; use one of {', '.join(sorted(known))}.", None)


def wrong_method(path: str, allowed: tuple[str, ...]) -> Refusal:
    """405 for a method that the address does not take."""
    return Refusal(405, "wrong_method", f"{path} takes {allowed[0]} only.", None, {"Allow": ", ".join(allowed)})


def too_slow(seconds: int) -> Refusal:
    """408 for an upload that takes longer than `seconds`."""
    sentence = f"The upload had not arrived after {seconds} s; send a smaller image."
    return Refusal(408, "too_slow", sentence, None, {"Connection": "close"})


def too_large(limit: int) -> Refusal:
    """413 for a body of more than `limit` bytes."""
    return Refusal(413, "too_many_bytes", f"The upload is larger than {limit // 2**20} MiB; send a smaller image.")


def too_many_images(count: int, limit: int) -> Refusal:
    """413 for a batch of more than `limit` images."""
    sentence = f"The request has {count} images, and at most {limit} are allowed; send several requests."
    return Refusal(413, "too_many_images", sentence, FIELDS)


def no_content_type(path: str) -> Refusal:
    """415 for a body without a content type."""
    return Refusal(415, "unsupported_media_type", f"The body has no content type. {_how(path)}", "content-type")


def unsupported(content_type: str, path: str) -> Refusal:
    """415 for a body of another content type."""
    sentence = f"The content type {content_type} is not supported. {_how(path)}"
    return Refusal(415, "unsupported_media_type", sentence, "content-type")


def encoded(encoding: str, header: str = "content-encoding") -> Refusal:
    """415 for a compressed body; `header` is the one that says so."""
    sentence = (
        f"The body has {header} {encoding}, and this service does not decompress bodies; send the image as it is, "
        "without this header."
    )
    return Refusal(415, "unsupported_encoding", sentence, header, {"Accept-Encoding": "identity"})


def failed() -> Refusal:
    """500 for an error of the service itself."""
    return Refusal(500, "fault", "The service failed to answer this request; its log gives the reason.", None)


def overloaded(reason: str = "Too many requests are waiting") -> Refusal:
    """503 for a request that arrives while the service is full."""
    return Refusal(503, "overloaded", f"{reason}; try again in a second.", None, {"Retry-After": "1"})


def unanswered(seconds: int) -> Refusal:
    """504 for a request that has no answer after `seconds`."""
    return Refusal(504, "no_answer", f"There was no answer after {seconds} s; try again.", None)


def _how(path: str) -> str:
    return _MANY if path == BATCH_PATH else _ONE


def _field(path: str) -> str:
    return FIELDS if path == BATCH_PATH else FIELD


def _list(names: Iterable[str]) -> str:
    return f"fields: {', '.join(map(repr, dict.fromkeys(names))) or 'none'}"
