import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline.artefact import Artefact
from serving import served

ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


BATCH = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(versions: list[Path], monkeypatch: pytest.MonkeyPatch) -> served.Served:
    """A model for two threads."""
    monkeypatch.setattr(served, "THREADS", 2)
    return served.Served(versions[0])


@pytest.fixture
def at_work(model: served.Served, monkeypatch: pytest.MonkeyPatch) -> list[Artefact]:
    """Let every computation wait until there is another; who computes comes into this list."""
    met, found, compute = threading.Barrier(2), [], Artefact.predict

    def meet(artefact: Artefact, images: np.ndarray) -> np.ndarray:
        found.append(artefact)
        met.wait(10)
        return compute(artefact, images)

    monkeypatch.setattr(Artefact, "predict", meet)
    return found


@pytest.mark.parametrize("images", [IMAGE, BATCH[:8]], ids=["one", "batch"])
def test_images_of_two_requests_are_computed_side_by_side(
    model: served.Served, at_work: list[Artefact], images: np.ndarray
) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(model.predict, [images, images])
    assert first == second
    assert at_work[0] is not at_work[1]


def test_a_batch_that_is_alone_is_computed_by_all_threads(model: served.Served, at_work: list[Artefact]) -> None:
    model.predict(BATCH, alone=True)
    assert at_work[0] is not at_work[1]


@pytest.mark.parametrize("alone", [False, True])
def test_a_batch_in_pieces_is_answered_in_its_order_as_each_image_alone(model: served.Served, alone: bool) -> None:
    model.piece = 4
    singly = [model.predict(image[None])[0]["probabilities"] for image in BATCH]
    batched = [found["probabilities"] for found in model.predict(BATCH, alone)]
    assert [pytest.approx(one, abs=1e-6) for one in singly] == batched
    assert len({found["cat"] for found in singly}) == len(BATCH)  # no two images have the same answer


@pytest.mark.parametrize(("seconds", "images"), [(1.0, 8), (0.0005, 20), (0.00001, 32)])
def test_a_piece_takes_ten_milliseconds_within_bounds(
    versions: list[Path], monkeypatch: pytest.MonkeyPatch, seconds: float, images: int
) -> None:
    monkeypatch.setattr(served, "_seconds", lambda *_: seconds)
    assert served.Served(versions[0]).piece == images


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"SERVING_CORES": "1"}, "1 1"),
        ({"SERVING_CORES": "2"}, "1 2"),
        ({"SERVING_CORES": "8"}, "4 2"),
        ({"SERVING_CORES": "8", "SERVING_WORKERS": "1"}, "1 8"),
    ],
)
def test_every_two_cores_get_a_worker_and_every_core_a_thread(told: dict[str, str], expected: str) -> None:
    ask = "from serving.workers import THREADS, WORKERS; print(WORKERS, THREADS)"
    env = {**os.environ, **told}
    assert subprocess.check_output([sys.executable, "-c", ask], env=env, text=True, cwd=ROOT).strip() == expected


def test_an_image_that_cannot_be_computed_leaves_the_model_for_the_next(
    versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "THREADS", 1)
    model = served.Served(versions[0])
    with pytest.raises(ValueError, match="uint8"):
        model.predict(IMAGE.astype(np.float32))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model.predict, IMAGE).result(timeout=10)
