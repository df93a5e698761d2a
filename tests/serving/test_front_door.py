"""Admission, limits, and errors behind the front door."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bentoml
import httpx
import pytest
from bento_fixtures import Service
from starlette.responses import Response
from waiting import LIMIT

from serving import front_door
from serving.front_door import WAITING, FrontDoor
from serving.service import SMALL_BYTES, Classifier

Encode = Callable[..., bytes]


def test_without_the_key_only_health_and_page_answer(filled_bento_store: Path, start: Any, encode: Encode) -> None:
    with start(filled_bento_store, SERVING_API_KEY="secret") as service:
        image = {"image": encode()}
        closed = ("/model", "/metrics", "/docs", "/docs.json", "/schema.json", "/predict")
        for method, path in (("POST" if path == "/predict" else "GET", path) for path in closed):
            answer = service.ask(method, path, files=image if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        wrong = {"Authorization": "Bearer secre"}
        assert service.ask("POST", "/predict", files=image, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert service.ask("POST", "/predict", files=image, headers=right).status_code == 200
        assert [service.ask("GET", path).status_code for path in ("/livez", "/readyz", "/")] == [200, 200, 200]
        with bentoml.SyncHTTPClient(service.address, token="secret") as client:
            assert client.is_ready()


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/"), ("POST", "/schema.json")])
def test_an_unknown_address_or_method_is_refused_in_json(service: Service, method: str, path: str) -> None:
    answer = service.ask(method, path)
    assert answer.status_code in {404, 405}
    assert answer.json()["error"]["message"].endswith(".")


def test_a_wrong_method_gets_the_right_one(service: Service) -> None:
    answer = service.ask("GET", "/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/static_content/../../served.json", "/static_content/%2e%2e/%2e%2e/served.json"])
def test_static_paths_reach_no_other_file(service: Service, path: str) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 404 " in answer.splitlines()[0]
    assert b"champion" not in answer


def test_requests_beyond_the_limit_get_503_and_retry_after(service: Service, encode: Encode) -> None:
    photo = encode("JPEG", (3000, 2000))  # takes some 0.1 s to decode

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{service.address}/predict", files={"image": photo}, timeout=LIMIT, trust_env=False)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"


def test_health_does_not_wait_for_photographs(service: Service, encode: Encode) -> None:
    photo = encode("JPEG", (3000, 2000))

    def ask(_: int) -> int:
        answer = httpx.post(f"{service.address}/predict", files={"image": photo}, timeout=LIMIT, trust_env=False)
        return answer.status_code

    with ThreadPoolExecutor(12) as pool:
        begun = [pool.submit(ask, number) for number in range(12)]
        while not any(job.done() for job in begun):  # the others are decoded, or wait
            time.sleep(0.005)
        assert service.ask("GET", "/livez").status_code == 200
        assert not all(job.done() for job in begun)
        assert {job.result() for job in begun} == {200}


def test_the_body_of_a_503_is_not_read() -> None:
    read: list[int] = []
    working = asyncio.Event()

    async def work(scope: Any, receive: Any, send: Any) -> None:
        await working.wait()

    async def ask(door: FrontDoor) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            read.append(1)
            return {"type": "http.request", "body": b"image"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [(b"content-type", b"image/png")]
        await door({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, send)
        return statuses[0] if statuses else 200

    async def crowd() -> list[int]:
        door = FrontDoor(work)
        begun = [asyncio.create_task(ask(door)) for _ in range(WAITING)]
        await asyncio.sleep(0)
        late = await ask(door)
        working.set()
        await asyncio.gather(*begun)
        return [late, await ask(door)]

    assert asyncio.run(crowd()) == [503, 200]
    assert len(read) == WAITING + 1


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_is_json_unless_the_answer_has_begun(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    sent = []

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("out of order")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/model", "headers": []}
    asked = FrontDoor(fail)(scope, None, send)
    if begun:
        with pytest.raises(RuntimeError, match="out of order"):
            asyncio.run(asked)
        assert [message.get("status") for message in sent] == [200]
    else:
        asyncio.run(asked)
        assert sent[0]["status"] == 500
        assert json.loads(sent[1]["body"])["error"]["code"] == "fault"
        assert "out of order" in caplog.text


@pytest.mark.parametrize("path", ["/model", "/predict", "/input"])
def test_a_late_answer_is_a_504_in_json(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    failed: list[tuple[str, int]] = []

    async def compute(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"image"}

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(front_door, "ANSWER_SECONDS", 0.01)
    door = FrontDoor(compute, failed=lambda *words: failed.append(words))
    method = "GET" if path == "/model" else "POST"
    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", b"image/png")]}
    asyncio.run(door(scope, receive, send))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (504, "no_answer")
    assert (door.working, door.held) == (0, 0)
    assert failed == ([("/predict", 504)] if path == "/predict" else [])


def test_an_answer_that_has_begun_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"whole"})

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(front_door, "ANSWER_SECONDS", 0.01)
    asyncio.run(FrontDoor(answer)({"type": "http", "method": "GET", "path": "/docs", "headers": []}, None, send))
    assert sent[-1]["body"] == b"whole"


def test_no_timer_outlives_an_answer() -> None:
    async def ask() -> list[Any]:
        app = httpx.ASGITransport(Classifier.to_asgi(is_main=True))
        async with httpx.AsyncClient(transport=app, base_url="http://service") as client:
            assert (await client.get("/livez")).status_code == 200
        loop: Any = asyncio.get_running_loop()
        return [timer for timer in loop._scheduled if not timer.cancelled()]

    assert asyncio.run(ask()) == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/model"), ("POST", "/predict"), ("POST", "/input")])
def test_an_error_of_any_address_is_json(method: str, path: str) -> None:
    async def ask() -> httpx.Response:
        app = httpx.ASGITransport(Classifier.to_asgi(is_main=True))  # not started: it has no instance
        async with httpx.AsyncClient(transport=app, base_url="http://service") as client:
            return await client.request(method, path, content=b"x", headers={"Content-Type": "image/png"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "fault")


def test_a_slow_upload_gets_408(service: Service) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=LIMIT) as connection:
        connection.sendall(head.encode() + bytes(100))
        started = time.monotonic()
        answer = connection.recv(4096)
    assert b" 408 " in answer.splitlines()[0]
    assert time.monotonic() - started > 10


@pytest.mark.parametrize(
    ("quick", "small", "side", "there"),
    [
        (True, True, 128, "HTTP"),
        (True, True, 129, "answer"),  # more than SMALL_PIXELS
        (True, False, 128, "answer"),
        (False, True, 128, "answer"),
    ],
)
def test_only_small_images_of_quick_networks_are_answered_by_the_http_thread(
    encode: Callable[..., bytes], quick: bool, small: bool, side: int, there: str
) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="answer") as threads:
        service = SimpleNamespace(
            live=SimpleNamespace(roles={"champion": SimpleNamespace(is_quick=quick)}), threads=threads, working=0
        )
        names = []
        here = threading.current_thread().name

        def respond(image: object, complete: float) -> Response:
            name = threading.current_thread().name
            names.append("HTTP" if name == here else name.partition("_")[0])
            return Response()

        asyncio.run(Classifier.inner.answer(service, respond, encode(size=(side, side)), small))
    assert names == [there]
    assert service.working == 0


@pytest.mark.parametrize(("more", "small"), [(0, True), (1, False)])
def test_an_image_file_of_few_bytes_is_small(more: int, small: bool) -> None:
    asked: list[bool] = []

    async def answer(respond: object, image: bytes, small: bool) -> None:
        asked.append(small)

    predict = next(api.func for api in Classifier.apis.values() if api.route == "/predict")
    asyncio.run(predict(SimpleNamespace(answer=answer, _predict=None), bytes(SMALL_BYTES + more)))
    assert asked == [small]
