"""A new champion while the service runs: no request fails, and every answer has its version."""

import io
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
from bento_fixtures import SMALL, SMALL_CLASSES, Service
from PIL import Image
from waiting import LIMIT, wait_until

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.release import bento
from serving import live as serving_live
from serving.live import Live
from serving.served import ROLES_FILE

Encode = Callable[..., bytes]
PROMOTIONS = 20


@pytest.fixture
def both(own_bento_store: Path, served_recipe: Recipe, served_versions: list[Path]) -> dict[str, str]:
    """The tags of two Bentos by their champion's version. The Bento of version 2 is live."""
    first = bento.package(served_recipe, served_versions[0], served_versions[1])
    return {"1": first, "2": str(bento.live(served_recipe))}


def store(folder: Path) -> tuple[Path, Path]:
    """Return the role files of two Bentos without code. The second one is live."""
    paths = [folder / "bentos" / "m" / tag / "src" / ROLES_FILE.name for tag in ("old", "new")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(path.parent.parent.name)
    (folder / "live").mkdir()
    (folder / "live" / "m").write_text("m:new")
    return paths[0], paths[1]


def named(path: Path, _: Path | None) -> Any:
    """Load a Bento of `store`: give its version in the place of its models."""
    return {"champion": path.parent.parent.name}


def serves(service: Service, version: str) -> bool:
    """Wait until the service has this champion, and return True."""
    return bool(wait_until(lambda: service.ask("GET", "/model").json()["champion"]["version"] == version))


@contextmanager
def load_on(service: Service, image: bytes) -> Iterator[list[tuple[int, str, str]]]:
    """Send requests until the block ends; give the list of (status, version in the body, version in the header)."""
    answers: list[tuple[int, str, str]] = []
    end = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.address, trust_env=False, timeout=LIMIT) as client:
            while not end.is_set():
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
        end.set()
        for thread in threads:
            thread.join()


def test_twenty_promotions_under_load_fail_no_request(
    own_bento_store: Path, both: dict[str, str], start: Any, encode: Encode
) -> None:
    with start(own_bento_store, follow=True) as service, load_on(service, encode()) as answers:
        for number in range(PROMOTIONS):
            version = "1" if number % 2 == 0 else "2"
            bento.put_live(both[version])
            assert serves(service, version)
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == {"1", "2"}
    assert all(body == header for _, body, header in answers)
    changes = sum(before[1] != after[1] for before, after in pairwise(answers))
    assert changes >= PROMOTIONS - 1


def test_a_champion_of_another_image_size_is_served(
    own_bento_store: Path, served_recipe: Recipe, small_version: Path, start: Any, encode: Encode
) -> None:
    raw, count = {"Content-Type": "application/octet-stream"}, SMALL * SMALL * 3
    with start(own_bento_store, follow=True) as service:
        bento.put_live(bento.package(served_recipe, small_version, None))
        assert serves(service, "3")
        assert list(service.ask("POST", "/predict", files={"image": encode()}).json()["probabilities"]) == SMALL_CLASSES
        batch = service.ask("POST", "/predict_batch", content=bytes(2 * count), headers=raw)
        assert len(batch.json()["predictions"]) == 2
        refused = service.ask("POST", "/predict_batch", content=bytes(3072), headers=raw).json()["error"]
        assert (refused["code"], "1,200 bytes (20 rows of 20" in refused["message"]) == ("wrong_length", True)
        png = service.ask("POST", "/input", files={"image": encode()}).content
        assert Image.open(io.BytesIO(png)).size == (SMALL, SMALL)
        assert "1,200 bytes an image" in service.ask("GET", "/docs.json").text


def test_a_damaged_artefact_is_refused_and_the_old_one_stays(
    own_bento_store: Path, both: dict[str, str], start: Any, encode: Encode
) -> None:
    with start(own_bento_store, follow=True) as service:
        roles = json.loads(
            (own_bento_store / "bentos" / both["1"].replace(":", "/") / "src" / "served.json").read_text()
        )
        damaged = own_bento_store / "models" / roles["champion"].replace(":", "/") / "model.tflite"
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1])
        bento.put_live(both["1"])
        refused = wait_until(lambda: service.ask("GET", "/model").json()["refused"])
        assert refused["bento"] == both["1"]
        assert "is damaged" in refused["reason"]
        assert service.ask("POST", "/predict", files={"image": encode()}).json()["model_version"] == "2"
        damaged.write_bytes(whole)
        bento.put_live(both["1"])
        assert serves(service, "1")


def test_a_bento_with_other_code_is_refused(own_bento_store: Path, both: dict[str, str], start: Any) -> None:
    with start(own_bento_store, follow=True) as service:
        code = own_bento_store / "bentos" / both["1"].replace(":", "/") / "src" / "serving" / "served.py"
        code.write_text(code.read_text() + "\n")
        bento.put_live(both["1"])
        refused = wait_until(lambda: service.ask("GET", "/model").json()["refused"])
        assert "start the service again" in refused["reason"]


def test_without_a_pointer_a_service_keeps_its_bento(own_bento_store: Path, both: dict[str, str], start: Any) -> None:
    with start(own_bento_store) as service:
        bento.put_live(both["1"])
        time.sleep(2)
        assert service.ask("GET", "/model").json()["champion"]["version"] == "2"


def test_a_worker_that_starts_again_serves_the_live_champion_at_once(tmp_path: Path) -> None:
    old, _ = store(tmp_path)
    live = Live(tmp_path / "live" / "m", old, named)
    assert live.roles == {"champion": "new"}


def test_without_a_pointer_a_worker_serves_its_own_champion(tmp_path: Path) -> None:
    old, _ = store(tmp_path)
    live = Live(None, old, named)
    assert live.roles == {"champion": "old"}


def test_a_pointer_that_is_gone_stops_no_start(tmp_path: Path) -> None:
    old, _ = store(tmp_path)
    live = Live(tmp_path / "live" / "gone", old, named)
    assert live.roles == {"champion": "old"}


@pytest.mark.parametrize("error", [OSError("the disk is away"), MemoryError()])
def test_a_champion_that_could_not_be_read_is_loaded_later(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_live, "RETRY_SECONDS", 0)
    old, _ = store(tmp_path)
    answers: list[Any] = [{"champion": "old"}, error, error, {"champion": "new"}]

    def load(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    live = Live(tmp_path / "live" / "m", old, load)
    live.look()
    assert (live.roles, live.refused) == (
        {"champion": "old"},
        {"bento": "m:new", "reason": str(error) or "MemoryError"},
    )
    live.look()
    assert (live.roles, live.refused) == ({"champion": "new"}, None)


def test_a_damaged_champion_is_loaded_once(tmp_path: Path) -> None:
    old, _ = store(tmp_path)
    loads: list[Path] = []

    def load(path: Path, _: Path | None) -> Any:
        loads.append(path)
        if path != old:
            raise ValueError("it is damaged")
        return {"champion": "old"}

    live = Live(tmp_path / "live" / "m", old, load)
    for _ in range(3):
        live.look()
    assert len(loads) == 2


def test_a_service_survives_the_loss_of_its_store(
    own_bento_store: Path, both: dict[str, str], start: Any, encode: Encode
) -> None:
    with start(own_bento_store, follow=True) as service:
        shutil.rmtree(own_bento_store / "live")
        time.sleep(1.5)
        assert service.ask("POST", "/predict", files={"image": encode()}).status_code == 200
