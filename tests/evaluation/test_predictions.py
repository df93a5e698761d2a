from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_pipeline.evaluation import predictions
from mobilenet_pipeline.evaluation.predictions import (
    PredictionsError,
    predictions_of,
    read_arrays,
    read_predictions,
    save_predictions,
)

ROWS = 40
CORRUPTIONS = {"noise 1": 0.5, "blur 1": 0.25}
DOCUMENT: dict[str, Any] = {
    "data_digest": "d1",
    "corruptions": CORRUPTIONS,
    "artefact": {"bytes": 1000, "p50_ms": 0.1, "p99_ms": 0.2},
    "overlap": 3,
}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """The arrays of predictions.npz; a model is right on the share of corrupted images that `CORRUPTIONS` says."""
    rows = np.arange(ROWS)
    one = {"probabilities": np.full((ROWS, 10), 0.1, np.float32), "labels": (rows % 10).astype(np.uint8), "rows": rows}
    right = np.packbits([rows < ROWS * share for share in CORRUPTIONS.values()], axis=0)
    validation = {f"validation_{name}": value for name, value in one.items()}
    return {**one, **validation, "corrupted_right": right, "corrupted_rows": rows, "data_digest": np.array("d1")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.npz"


def test_predictions_come_back_from_their_file(arrays, path):
    save_predictions(path, arrays)
    loaded = predictions_of(read_predictions(path), DOCUMENT, "p1", version="7")
    assert (loaded.data_digest, loaded.version) == ("d1", "7")
    np.testing.assert_array_equal(loaded.probabilities, arrays["probabilities"])
    np.testing.assert_array_equal(loaded.labels, arrays["labels"])


def test_facts_are_those_of_the_evaluation(arrays):
    facts = predictions_of(arrays, DOCUMENT, "p1").facts
    assert {name: right.mean() for name, right in facts.corrupted.items()} == CORRUPTIONS
    assert (facts.bytes, facts.p50_ms, facts.p99_ms, facts.overlap) == (1000, 0.1, 0.2, 3)
    assert (facts.preprocessing, facts.withdrawn) == ("p1", None)


def test_a_training_without_a_fingerprint_is_not_recorded(arrays):
    assert predictions_of(arrays, DOCUMENT, None).facts.preprocessing == "not recorded"


def test_right_is_where_the_most_probable_class_is_the_label(arrays):
    assert predictions_of(arrays, DOCUMENT, "p1").right.tolist() == [label == 0 for label in arrays["labels"]]


@pytest.mark.parametrize("figure", ["corruptions", "artefact", "overlap"])
def test_an_evaluation_of_fewer_figures_is_refused(arrays, figure):
    earlier = {key: value for key, value in DOCUMENT.items() if key != figure}
    with pytest.raises(PredictionsError, match=rf"version 7 lacks '{figure}'.* evaluate it again"):
        predictions_of(arrays, earlier, "p1", version="7")


def test_metrics_of_other_data_are_refused(arrays):
    with pytest.raises(PredictionsError, match="are of different data"):
        predictions_of(arrays, DOCUMENT | {"data_digest": "d2"}, "p1")


def test_the_same_predictions_give_the_same_file(arrays, tmp_path):
    for name in ("a.npz", "b.npz"):
        save_predictions(tmp_path / name, arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_large_arrays_stay_in_their_file(arrays, path, monkeypatch):
    monkeypatch.setattr(predictions, "MAPPED", 1)
    save_predictions(path, arrays)
    loaded = read_arrays(path)
    assert isinstance(loaded["probabilities"].base, np.memmap)
    assert all(loaded[name].flags.aligned and np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_small_predictions_have_the_bytes_that_numpy_writes(arrays, path, tmp_path):
    save_predictions(path, arrays)
    np.savez(tmp_path / "numpy.npz", **{name: arrays[name] for name in predictions.ARRAYS})
    assert path.read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_large_arrays_of_numpy_s_own_archives_can_be_read(arrays, path, monkeypatch):
    monkeypatch.setattr(predictions, "MAPPED", 1)
    np.savez(path, **arrays)
    loaded = read_arrays(path)
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_numpy_reads_the_file(arrays, path):
    save_predictions(path, arrays)
    with np.load(path) as archive:
        assert {name: archive[name].tobytes() for name in archive.files} == {
            name: np.asarray(array).tobytes() for name, array in arrays.items()
        }


def test_a_damaged_large_array_is_refused_by_name(arrays, path, monkeypatch):
    monkeypatch.setattr(predictions, "MAPPED", 1)
    save_predictions(path, arrays)
    data = bytearray(path.read_bytes())
    data[data.index(arrays["probabilities"].tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(PredictionsError, match=r"predictions\.npz cannot be read"):
        read_arrays(path)


def test_missing_predictions_are_refused_by_name(path):
    with pytest.raises(PredictionsError, match=r"predictions\.npz does not exist"):
        read_predictions(path)


@pytest.mark.parametrize("length", [0, 10, 2000])
def test_truncated_predictions_are_refused_by_name(arrays, path, length):
    save_predictions(path, arrays)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PredictionsError, match=r"predictions\.npz cannot be read"):
        read_predictions(path)


def test_pickled_predictions_are_refused_and_not_executed(arrays, path):
    np.savez(path, **{**arrays, "labels": np.array([object()])})
    with pytest.raises(PredictionsError, match="cannot be read"):
        read_predictions(path)


def test_predictions_without_a_digest_are_refused(arrays, path):
    np.savez(path, **{key: value for key, value in arrays.items() if key != "data_digest"})
    with pytest.raises(PredictionsError, match="lacks data_digest"):
        read_predictions(path)


def test_arrays_of_an_earlier_version_can_be_read(arrays, path):
    np.savez(path, labels=arrays["labels"])
    assert list(read_arrays(path)) == ["labels"]


def test_incomplete_predictions_are_not_saved(arrays, path):
    del arrays["rows"]
    with pytest.raises(PredictionsError, match="lacks rows"):
        save_predictions(path, arrays)
    assert not path.exists()
