"""What the running service answers to a bad request: 4xx with a sentence, and it lives on."""

import pickle
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import Service

Encode = Callable[..., bytes]
MIB = 2**20


@pytest.fixture(autouse=True)
def lives_on(service: Service, encode: Encode) -> Iterator[None]:
    """After every one of these tests the same processes answer a good request."""
    before = {process.pid for process in service.processes()}
    yield
    assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
    assert {process.pid for process in service.processes()} == before


def refused(service: Service, status: int, code: str, **request: Any) -> dict[str, Any]:
    """Ask both endpoints, compare with what is expected, and return the error of one."""
    for path in ("/compare", "/predict"):
        answer = service.ask("POST", path, **request)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert set(error) == {"code", "message", "field"}
        assert error["message"].endswith(".")
        assert " " in error["message"]
    return dict(error)


@pytest.mark.parametrize("request_", [{}, {"content": b"", "headers": {"Content-Type": "image/png"}}])
def test_no_file(service: Service, request_: dict[str, Any]) -> None:
    assert refused(service, 400, "missing_image", **request_)["field"] == "image"


def test_a_form_without_the_field_is_told_which_fields_it_has(service: Service, encode: Encode) -> None:
    assert "'photo'" in refused(service, 400, "missing_image", files={"photo": encode()})["message"]


def test_an_empty_file(service: Service) -> None:
    refused(service, 400, "empty", files={"image": ("photo.png", b"")})


def test_two_files(service: Service, encode: Encode) -> None:
    refused(service, 400, "malformed_form", files=[("image", encode()), ("image", encode())])


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_a_form_that_is_none(service: Service, kind: str) -> None:
    answer = service.ask("POST", "/predict", content=b"--x\r\n\r\nhello", headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"malformed_form", "missing_image"}


def test_a_text_file(service: Service) -> None:
    assert "JPEG" in refused(service, 400, "not_an_image", files={"image": ("photo.jpg", b"hello")})["message"]


def test_a_truncated_jpeg(service: Service, encode: Encode) -> None:
    refused(service, 400, "damaged", files={"image": encode("JPEG", (300, 300))[:-900]})


def test_a_truncated_photograph_that_another_thread_decodes(service: Service, encode: Encode) -> None:
    refused(service, 400, "damaged", files={"image": encode("JPEG", (1200, 800))[:-9000]})


def test_a_decompression_bomb(service: Service, encode: Encode) -> None:
    small = bytearray(encode())
    small[16:24] = (30_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    memory = resident(service)
    assert "25 million" in refused(service, 400, "too_many_pixels", files={"image": bytes(small)})["message"]
    assert resident(service) - memory < 50 * MIB


def test_an_upload_of_50_mb(service: Service) -> None:
    memory = resident(service)
    assert "10 MiB" in refused(service, 413, "too_many_bytes", files={"image": bytes(50 * MIB)})["message"]
    assert resident(service) - memory < 40 * MIB


def test_an_upload_of_50_mb_that_does_not_say_how_long_it_is(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(MIB)

    memory = resident(service)
    answer = service.ask("POST", "/predict", content=chunks(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_bytes")
    assert resident(service) - memory < 40 * MIB


def test_an_upload_that_breaks_off(service: Service) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n"
        connection.sendall(head.encode() + bytes(100))


class Touch:
    """Unpickled, it makes a file."""

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
    pickle.loads(body)  # so it was a real one
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "image/png"])
def test_a_pickle_in_the_place_of_the_image_is_not_unpickled(service: Service, tmp_path: Path, kind: str) -> None:
    file = ("photo", pickle.dumps(Touch(tmp_path / "touched")), kind)
    refused(service, 400, "not_an_image", files={"image": file})
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense"])
def test_other_kinds_of_body(service: Service, kind: str) -> None:
    error = refused(service, 415, "unsupported_media_type", content=b"image=1", headers={"Content-Type": kind})
    assert error["field"] == "content-type"
    assert kind in error["message"]


def test_a_url_in_the_place_of_the_file_is_not_fetched(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
        # The second part makes it a multipart form.
        refused(service, 400, "missing_image", data={"image": url}, files={"note": b"x"})
        with pytest.raises(TimeoutError):
            listener.accept()


def resident(service: Service) -> int:
    """Bytes of memory that the service holds."""
    return sum(process.memory_info().rss for process in service.processes())
