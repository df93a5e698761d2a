"""Versions that answer: which thread computes what, and which versions may be served together."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bento_fixtures import SMALL, SMALL_CLASSES, THRESHOLDS
from waiting import LIMIT

from mobilenet_pipeline.inference.artefact import Answers, Artefact
from serving import served, settings
from serving.served import Served

IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
BATCH = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(served_versions: list[Path], monkeypatch: pytest.MonkeyPatch) -> Served:
    """A model for two threads."""
    monkeypatch.setattr(settings, "threads", lambda: 2)
    return Served(served_versions[0])


@pytest.fixture
def computing(model: Served, monkeypatch: pytest.MonkeyPatch) -> list[Artefact]:
    """The copies that compute. Every computation waits until there are two."""
    pair, copies, compute = threading.Barrier(2), [], Artefact.answer

    def meet(artefact: Artefact, images: np.ndarray) -> Answers:
        copies.append(artefact)
        pair.wait(LIMIT)
        return compute(artefact, images)

    monkeypatch.setattr(Artefact, "answer", meet)
    return copies


@pytest.mark.parametrize(("longest", "copies"), [(0, 2), (LIMIT, 3)], ids=["slow", "quick"])
def test_a_quick_network_has_one_copy_more_than_threads(
    served_versions: list[Path], monkeypatch: pytest.MonkeyPatch, longest: float, copies: int
) -> None:
    monkeypatch.setattr(settings, "threads", lambda: 2)
    monkeypatch.setattr(served, "QUICK_SECONDS", longest)
    assert Served(served_versions[0]).singles.qsize() == copies


@pytest.mark.parametrize("images", [IMAGE, BATCH[:8]], ids=["one", "batch"])
def test_two_requests_are_computed_side_by_side(model: Served, computing: list[Artefact], images: np.ndarray) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(model.predict, [images, images])
    assert first == second
    assert computing[0] is not computing[1]


def test_a_lone_batch_is_computed_by_all_threads(model: Served, computing: list[Artefact]) -> None:
    model.predict(BATCH, alone=True)
    assert computing[0] is not computing[1]


@pytest.mark.parametrize("alone", [False, True])
def test_a_batch_in_pieces_keeps_its_order(model: Served, alone: bool) -> None:
    model.piece = 4
    singly = [model.predict(image[None])[0]["probabilities"] for image in BATCH]
    batched = [prediction["probabilities"] for prediction in model.predict(BATCH, alone)]
    assert [pytest.approx(one, abs=1e-6) for one in singly] == batched
    assert len({one["cat"] for one in singly}) == len(BATCH)  # no two images have the same answer


@pytest.mark.parametrize(("seconds", "images"), [(1.0, 8), (0.0005, 20), (0.00001, 32)])
def test_a_piece_takes_ten_milliseconds_within_bounds(
    served_versions: list[Path], monkeypatch: pytest.MonkeyPatch, seconds: float, images: int
) -> None:
    monkeypatch.setattr(served, "_seconds", lambda *_: seconds)
    assert Served(served_versions[0]).piece == images


def test_a_failed_computation_frees_its_copy(served_versions: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "threads", lambda: 1)
    model = Served(served_versions[0])
    with pytest.raises(ValueError, match="uint8"):
        model.predict(IMAGE.astype(np.float32))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model.predict, IMAGE).result(timeout=LIMIT)


def test_image_size_and_classes_are_the_model_s(small_version: Path) -> None:
    model = Served(small_version)
    (prediction,) = model.predict(np.zeros((1, SMALL, SMALL, 3), np.uint8))
    assert (model.size, model.description()["image_shape"]) == (SMALL, [SMALL, SMALL, 3])
    assert list(prediction["probabilities"]) == SMALL_CLASSES


@pytest.mark.parametrize("alone", [False, True])
def test_each_image_has_its_own_prediction_set(model: Served, alone: bool) -> None:
    for prediction in model.predict(BATCH, alone):
        members, shares = prediction["prediction_set"], prediction["probabilities"]
        assert members[0] == prediction["class"]
        assert {name for name, share in shares.items() if share >= THRESHOLDS["probability"]} == set(members)


def test_the_flag_of_an_image_is_the_same_alone_and_in_a_batch(served_versions: list[Path]) -> None:
    model = Served(served_versions[1])
    images = np.concatenate([BATCH, np.zeros_like(BATCH), np.full_like(BATCH, 255)])
    singly = [model.predict(image[None])[0]["unfamiliar"] for image in images]
    assert singly == [prediction["unfamiliar"] for prediction in model.predict(images)]
    assert set(singly) == {False, True}


def test_a_version_of_an_earlier_release_has_no_set_and_no_flag(small_version: Path) -> None:
    model = Served(small_version)
    (prediction,) = model.predict(np.zeros((1, SMALL, SMALL, 3), np.uint8))
    assert (prediction["prediction_set"], prediction["unfamiliar"], model.says["coverage"]) == (None, None, None)


def test_models_of_two_shapes_are_refused(
    served_versions: list[Path], small_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SimpleNamespace(get=lambda folder: SimpleNamespace(path=folder))
    monkeypatch.setattr(served, "bentoml", SimpleNamespace(models=store))
    roles = tmp_path / "served.json"
    roles.write_text(json.dumps({"champion": str(served_versions[0]), "challenger": str(small_version)}))
    with pytest.raises(ValueError, match=r"images of one shape, not .*32, 32, 3.*20, 20, 3"):
        served.load_served(roles)
