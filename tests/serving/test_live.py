"""A new champion while the service runs: nobody is turned away, and every answer says who gave it."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Service

from mobilenet_pipeline import packaging
from mobilenet_pipeline.config import Recipe

Encode = Callable[..., bytes]
PROMOTIONS = 20


@pytest.fixture
def both(own_store: Path, recipe: Recipe, versions: list[Path]) -> dict[str, str]:
    """The tags of two Bentos, by their champion's version; that of version 2 is live."""
    first = packaging.package(recipe, versions[0], versions[1])
    live = packaging.live(recipe)
    assert live is not None
    return {"1": first, "2": live.tag}


def serves(service: Service, version: str) -> bool:
    """Whether the service says so within a few seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if service.ask("GET", "/model").json()["champion"]["version"] == version:
            return True
        time.sleep(0.05)
    return False


@contextmanager
def load_on(service: Service, image: bytes) -> Iterator[list[tuple[int, str, str]]]:
    """Constant requests until the block ends; gives (status, version in the answer, version in the header) of each."""
    answers: list[tuple[int, str, str]] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.address, trust_env=False, timeout=30) as client:
            while not over.is_set():
                answer = client.post("/predict", files={"image": image})
                document = answer.json()
                version = answer.headers.get("x-model-version", "")
                answers.append((answer.status_code, str(document.get("model_version")), version))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_twenty_promotions_under_load_fail_no_request(
    own_store: Path, both: dict[str, str], start: Any, encode: Encode
) -> None:
    with start(own_store, follow=True) as service, load_on(service, encode()) as answers:
        for number in range(PROMOTIONS):
            version = "1" if number % 2 == 0 else "2"
            packaging.put_live(both[version])
            assert serves(service, version)
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == {"1", "2"}
    assert all(said == header for _, said, header in answers)
    changes = sum(before[1] != after[1] for before, after in pairwise(answers))
    assert changes >= PROMOTIONS - 1


def test_a_broken_artefact_is_refused_and_the_old_one_goes_on(
    own_store: Path, both: dict[str, str], start: Any, encode: Encode, recipe: Recipe
) -> None:
    with start(own_store, follow=True) as service:
        roles = json.loads((own_store / "bentos" / both["1"].replace(":", "/") / "src" / "served.json").read_text())
        damaged = own_store / "models" / roles["champion"].replace(":", "/") / "model.tflite"
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1])
        packaging.put_live(both["1"])
        deadline = time.monotonic() + 10
        while not (refused := service.ask("GET", "/model").json()["refused"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert refused["bento"] == both["1"]
        assert "is damaged" in refused["reason"]
        assert service.ask("POST", "/predict", files={"image": encode()}).json()["model_version"] == "2"
        damaged.write_bytes(whole)
        packaging.put_live(both["1"])
        assert serves(service, "1")


def test_a_bento_with_another_service_in_it_is_refused(
    own_store: Path, both: dict[str, str], start: Any, recipe: Recipe
) -> None:
    with start(own_store, follow=True) as service:
        code = own_store / "bentos" / both["1"].replace(":", "/") / "src" / "serving" / "served.py"
        code.write_text(code.read_text() + "\n")
        packaging.put_live(both["1"])
        deadline = time.monotonic() + 10
        while not (refused := service.ask("GET", "/model").json()["refused"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "start the service again" in refused["reason"]


def test_without_following_a_service_keeps_to_its_bento(own_store: Path, both: dict[str, str], start: Any) -> None:
    with start(own_store) as service:
        packaging.put_live(both["1"])
        time.sleep(2)
        assert service.ask("GET", "/model").json()["champion"]["version"] == "2"


def test_a_service_goes_on_when_the_store_is_away(
    own_store: Path, both: dict[str, str], start: Any, encode: Encode
) -> None:
    with start(own_store, follow=True) as service:
        shutil.rmtree(own_store / "live")
        time.sleep(1.5)
        assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
