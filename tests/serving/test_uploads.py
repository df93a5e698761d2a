"""Bad uploads: the running service refuses each with a sentence, and its processes survive."""

import asyncio
import base64
import gzip
import pickle
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bento_fixtures import Service

from serving import uploads
from serving.refusals import Refusal

Encode = Callable[..., bytes]
MIB = 2**20


@pytest.fixture(autouse=True)
def surviving(service: Service, encode: Encode) -> Iterator[None]:
    """After every test, the same processes answer a good request."""
    before = {process.pid for process in service.processes()}
    yield
    assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
    assert {process.pid for process in service.processes()} == before


def refused(service: Service, status: int, code: str, **request: Any) -> dict[str, Any]:
    """Send the request to two addresses, check status and code, and return the error of one."""
    for path in ("/compare", "/predict"):
        answer = service.ask("POST", path, **request)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert set(error) == {"code", "message", "field"}
        assert error["message"].endswith(".")
        assert " " in error["message"]
    return dict(error)


def test_raw_pixels_become_images_of_the_shape() -> None:
    pixels = np.arange(2 * 20 * 30 * 3).astype(np.uint8).reshape(2, 20, 30, 3)
    assert np.array_equal(uploads.pixels(pixels.tobytes(), (20, 30, 3)), pixels)


@pytest.mark.parametrize(("size", "code"), [(1799, "wrong_length"), (257 * 1800, "too_many_images")])
def test_raw_pixels_beyond_the_limits_are_refused(size: int, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        uploads.pixels(bytes(size), (20, 30, 3))
    assert (refusal.value.code, refusal.value.field) == (code, "images")


def part(disposition: str, content: bytes = b"PNG", more: str = "") -> bytes:
    """Return a part of a form with the boundary `b`."""
    return f"--b\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + content + b"\r\n"


FILE = 'form-data; name="image"; filename="a.png"'
KIND = "Content-Type: image/png\r\n"


@pytest.mark.parametrize("more", ["", KIND])
@pytest.mark.parametrize("content", [b"", b"PNG", b"\r\n--a\r\n\r\n", b"\r\n\r\n"])
@pytest.mark.parametrize("end", [b"--b--\r\n", b"--b--"])
def test_the_only_file_of_a_form_is_taken_from_it(content: bytes, more: str, end: bytes) -> None:
    body = part(FILE, content, more) + end
    assert uploads.only_file("multipart/form-data; boundary=b", body) == content
    assert asyncio.run(uploads._fields(scope(), body, 1)) == [("image", content)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b\r\n",
        b"--b--\r\n",
        part(FILE),
        part(FILE) + b"--b\r\n",
        part(FILE) + part(FILE) + b"--b--\r\n",
        part(FILE) + b"--b--\r\nmore",
        b"before\r\n" + part(FILE) + b"--b--\r\n",
        part('form-data; name="image"') + b"--b--\r\n",
        part('form-data; name="other"; filename="a.png"') + b"--b--\r\n",
        part('attachment; name="image"; filename="a.png"') + b"--b--\r\n",
        part(FILE, more="Content-Transfer-Encoding: base64\r\n") + b"--b--\r\n",
        part(FILE, more=KIND + KIND) + b"--b--\r\n",
        part(FILE, more=f"X: {'x' * 600}\r\n") + b"--b--\r\n",
        b"--b\r\n\r\nPNG\r\n--b--\r\n",
    ],
)
def test_any_other_form_is_left_to_the_parser(body: bytes) -> None:
    assert uploads.only_file("multipart/form-data; boundary=b", body) is None


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=c"]
)
def test_a_form_of_another_boundary_is_left_to_the_parser(kind: str) -> None:
    assert uploads.only_file(kind, part(FILE) + b"--b--\r\n") is None


def scope() -> dict[str, Any]:
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    return {"type": "http", "path": "/predict", "headers": headers}


@pytest.mark.parametrize("request_", [{}, {"content": b"", "headers": {"Content-Type": "image/png"}}])
def test_a_request_without_a_file_is_refused(service: Service, request_: dict[str, Any]) -> None:
    assert refused(service, 400, "missing_image", **request_)["field"] == "image"


def test_a_form_without_the_field_gets_a_list_of_its_fields(service: Service, encode: Encode) -> None:
    assert "'photo'" in refused(service, 400, "missing_image", files={"photo": encode()})["message"]


def test_an_empty_file_is_refused(service: Service) -> None:
    refused(service, 400, "empty", files={"image": ("photo.png", b"")})


def test_two_files_are_refused(service: Service, encode: Encode) -> None:
    refused(service, 400, "malformed_form", files=[("image", encode()), ("image", encode())])


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_a_malformed_form_is_refused(service: Service, kind: str) -> None:
    answer = service.ask("POST", "/predict", content=b"--x\r\n\r\nhello", headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"malformed_form", "missing_image"}


def form(headers: str, data: bytes) -> dict[str, Any]:
    """Return a request whose form has one part with these headers."""
    body = f"--x\r\n{headers}\r\n\r\n".encode() + data + b"\r\n--x--\r\n"
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


@pytest.mark.parametrize(
    "headers",
    [
        'Content-Disposition: form-data; name="{}"\r\nContent-Type: image/png',
        "content-type: IMAGE/PNG; x=y\r\ncontent-disposition: form-data; name={}",
        'Content-Disposition: form-data; name="{}"\r\nContent-Type: application/octet-stream',
        "Content-Disposition: form-data; name=\"{}\"; filename*=UTF-8''ph%C3%B6to.png",
    ],
)
def test_a_file_without_a_plain_name_is_taken(service: Service, encode: Encode, headers: str) -> None:
    for path, field in (("/predict", "image"), ("/predict_batch", "images")):
        assert service.ask("POST", path, **form(headers.format(field), encode())).status_code == 200


def test_a_text_of_any_size_is_called_a_text(service: Service) -> None:
    for size in (5, 2 * MIB):
        request = form('Content-Disposition: form-data; name="image"', bytes(size))
        assert "must hold a file, not text" in refused(service, 400, "missing_image", **request)["message"]


def test_an_encoded_part_is_named_with_its_encoding(service: Service, encode: Encode) -> None:
    disposition = 'Content-Disposition: form-data; name="image"; filename="photo.png"'
    request = form(f"{disposition}\r\nContent-Transfer-Encoding: base64", base64.b64encode(encode()))
    message = refused(service, 400, "malformed_form", **request)["message"]
    assert "Content-Transfer-Encoding is base64, and must be binary" in message


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br", "GZIP"])
@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_compressed_body_is_named_with_its_encoding(service: Service, encoding: str, kind: str) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    error = refused(service, 415, "unsupported_encoding", content=gzip.compress(b"x"), headers=headers)
    assert f"content-encoding {encoding.lower()}, and this service does not decompress" in error["message"]
    assert error["field"] == "content-encoding"


def test_a_compressed_transfer_is_refused_too() -> None:
    headers = [(b"content-type", b"image/png"), (b"transfer-encoding", b"gzip, chunked")]
    with pytest.raises(Refusal, match="transfer-encoding gzip, chunked, and this service does not") as refusal:
        uploads.check_headers({"type": "http", "path": "/predict", "headers": headers})
    assert (refusal.value.status, refusal.value.headers) == (415, {"Accept-Encoding": "identity"})


def test_a_body_with_encoding_identity_is_taken(service: Service, encode: Encode) -> None:
    headers = {"Content-Type": "image/png; charset=binary", "Content-Encoding": "identity"}
    assert service.ask("POST", "/predict", content=encode(), headers=headers).status_code == 200


def test_a_text_file_is_refused(service: Service) -> None:
    assert "JPEG" in refused(service, 400, "not_an_image", files={"image": ("photo.jpg", b"hello")})["message"]


def test_a_truncated_jpeg_is_refused(service: Service, encode: Encode) -> None:
    refused(service, 400, "damaged", files={"image": encode("JPEG", (300, 300))[:-900]})


def test_a_truncated_photograph_is_refused(service: Service, encode: Encode) -> None:
    refused(service, 400, "damaged", files={"image": encode("JPEG", (1200, 800))[:-9000]})


def test_a_decompression_bomb_takes_no_memory(service: Service, encode: Encode) -> None:
    small = bytearray(encode())
    small[16:24] = (30_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    memory = resident(service)
    assert "25 million" in refused(service, 400, "too_many_pixels", files={"image": bytes(small)})["message"]
    assert resident(service) - memory < 50 * MIB


def test_an_upload_of_50_mb_takes_no_memory(service: Service) -> None:
    memory = resident(service)
    assert "10 MiB" in refused(service, 413, "too_many_bytes", files={"image": bytes(50 * MIB)})["message"]
    assert resident(service) - memory < 40 * MIB


def test_an_upload_of_undeclared_length_takes_no_memory(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(MIB)

    memory = resident(service)
    answer = service.ask("POST", "/predict", content=chunks(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_bytes")
    assert resident(service) - memory < 40 * MIB


def test_an_upload_that_ends_too_early_does_no_harm(service: Service) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n"
        connection.sendall(head.encode() + bytes(100))


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extra", [{}, {"Buffer-Lengths": "{size}"}, {"Args-Number": "1"}])
@pytest.mark.parametrize(
    "kind",
    ["application/vnd.bentoml+pickle", "Application/VND.BentoML+Pickle ; x=y", "application/x-pickle"],
)
def test_a_pickle_is_refused_unread(service: Service, tmp_path: Path, kind: str, extra: dict[str, str]) -> None:
    body = pickle.dumps({"image": Touch(tmp_path / "touched")})
    headers = {"Content-Type": kind} | {name: value.format(size=len(body)) for name, value in extra.items()}
    refused(service, 415, "unsupported_media_type", content=body, headers=headers)
    assert not (tmp_path / "touched").exists()
    pickle.loads(body)  # the pickle works
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "image/png"])
def test_a_pickle_as_the_image_is_not_unpickled(service: Service, tmp_path: Path, kind: str) -> None:
    file = ("photo", pickle.dumps(Touch(tmp_path / "touched")), kind)
    refused(service, 400, "not_an_image", files={"image": file})
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense"])
def test_other_content_types_are_refused(service: Service, kind: str) -> None:
    error = refused(service, 415, "unsupported_media_type", content=b"image=1", headers={"Content-Type": kind})
    assert error["field"] == "content-type"
    assert kind in error["message"]


def test_a_url_as_the_image_is_not_fetched(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
        # The second part makes it a multipart form.
        refused(service, 400, "missing_image", data={"image": url}, files={"note": b"x"})
        with pytest.raises(TimeoutError):
            listener.accept()


def resident(service: Service) -> int:
    """Return the resident bytes of the service's processes."""
    return sum(process.memory_info().rss for process in service.processes())
