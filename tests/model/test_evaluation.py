import csv
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_pipeline import evaluation, gate, images, metrics

NAMES = [str(digit) for digit in range(10)]
ROWS = 700
TEST_ROWS = np.arange(301, ROWS)
VALIDATION_ROWS = np.arange(0, 100)

Result = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def dataset() -> images.Dataset:
    """Images whose brightness tells their class."""
    labels = np.random.default_rng(0).integers(0, 10, ROWS).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 20, (ROWS, 32, 32, 3))
    pixels = (labels[:, None, None, None] * 23 + noise).astype(np.uint8)
    return images.Dataset(pixels, labels, np.isin(np.arange(ROWS), TEST_ROWS), "d1", NAMES, 0)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported model that tells the class by the brightness, with some mistakes."""
    keras = pytest.importorskip("keras")
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    brightness = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    dense = keras.layers.Dense(10, activation="softmax")
    model = keras.Model(inputs, dense(brightness))
    centres = (np.arange(10) * 23 + 9.5) / 255
    # The nearest centre has the largest 2xc - c²: a linear classifier of the mean of three channels.
    dense.set_weights([np.tile(2 * centres / 3, (3, 1)) * 150, -(centres**2) * 150])
    path = tmp_path_factory.mktemp("artefact") / "model.tflite"
    model.export(path, format="litert", verbose=False)
    return path


@pytest.fixture(scope="module")
def result(artefact: Path, dataset: images.Dataset) -> Result:
    return evaluation.evaluate(artefact, dataset, VALIDATION_ROWS)


def test_the_metrics_are_those_of_the_predictions_that_are_kept(result: Result) -> None:
    document, predictions = result
    found = metrics.evaluate(predictions["probabilities"], predictions["labels"], NAMES)
    error = metrics.expected_calibration_error(predictions["probabilities"], predictions["labels"])
    totals = {key: found[key] for key in ("rows", "loss", "accuracy", "top3_accuracy")}
    assert document["test"] == totals | {"calibration_error": error}
    assert document["confusion_matrix"] == found["confusion_matrix"]
    assert document["test"]["accuracy"] > 0.5


def test_test_and_validation_are_scored_apart(result: Result) -> None:
    document, predictions = result
    assert (document["test"]["rows"], document["validation"]["rows"]) == (len(TEST_ROWS), len(VALIDATION_ROWS))
    assert not set(predictions["rows"]) & set(predictions["validation_rows"])


def test_test_rows_are_kept_in_ascending_order_with_their_labels(result: Result, dataset: images.Dataset) -> None:
    _, predictions = result
    assert predictions["rows"].tolist() == sorted(TEST_ROWS)
    assert (predictions["labels"] == dataset.labels[predictions["rows"]]).all()


def test_batches_do_not_change_an_answer(
    artefact: Path, dataset: images.Dataset, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 7)
    _, predictions = evaluation.evaluate(artefact, dataset, VALIDATION_ROWS)
    np.testing.assert_allclose(predictions["probabilities"], result[1]["probabilities"], atol=1e-6)


def test_labels_that_are_not_classes_are_refused_with_the_artefact_s_name(
    artefact: Path, dataset: images.Dataset
) -> None:
    with pytest.raises(ValueError, match=r"model\.tflite on the test images: label 1\d"):
        evaluation.evaluate(artefact, replace(dataset, labels=dataset.labels + 10), VALIDATION_ROWS)


def test_predictions_come_back_from_their_file(result: Result, tmp_path: Path) -> None:
    evaluation.save_predictions(tmp_path / "predictions.npz", result[1])
    loaded = evaluation.load_predictions(tmp_path / "predictions.npz", result[0], "p1", version="7")
    assert (loaded.data_digest, loaded.version) == ("d1", "7")
    np.testing.assert_array_equal(loaded.probabilities, result[1]["probabilities"])


def test_an_evaluation_that_measured_less_is_refused_with_the_remedy(result: Result, tmp_path: Path) -> None:
    evaluation.save_predictions(tmp_path / "predictions.npz", result[1])
    earlier = {key: value for key, value in result[0].items() if key != "corruptions"}
    with pytest.raises(gate.GateError, match=r"lacks 'corruptions'.* evaluate it again"):
        evaluation.load_predictions(tmp_path / "predictions.npz", earlier, "p1")


def test_metrics_of_other_data_than_the_predictions_are_refused(result: Result, tmp_path: Path) -> None:
    evaluation.save_predictions(tmp_path / "predictions.npz", result[1])
    with pytest.raises(gate.GateError, match="are of different data"):
        evaluation.load_predictions(tmp_path / "predictions.npz", result[0] | {"data_digest": "d2"}, "p1")


def test_corrupted_images_are_answered_worse_than_the_others(result: Result) -> None:
    document, _ = result
    assert len(document["corruptions"]) == 15
    assert document["corruptions"]["brightness 3"] < document["test"]["accuracy"]


def test_right_and_wrong_are_kept_for_every_corrupted_image(result: Result) -> None:
    document, arrays = result
    found = evaluation.predictions_of(arrays, document, "p1", None).facts.corrupted
    assert {name: right.mean() for name, right in found.items()} == pytest.approx(document["corruptions"])
    assert {right.shape for right in found.values()} == {(len(TEST_ROWS),)}


def test_right_and_wrong_take_a_bit_each(result: Result) -> None:
    assert result[1]["corrupted_right"].nbytes == 2 * len(TEST_ROWS)  # 15 corruptions


def test_an_evaluation_of_today_holds_all_that_the_gate_needs(result: Result, tmp_path: Path) -> None:
    evaluation.save_predictions(tmp_path / "predictions.npz", result[1])
    assert evaluation.is_complete(tmp_path / "predictions.npz", result[0])


@pytest.mark.parametrize("lacking", ["corrupted_right", "corrupted_rows"])
def test_an_evaluation_of_an_earlier_version_does_not(result: Result, tmp_path: Path, lacking: str) -> None:
    np.savez(tmp_path / "predictions.npz", **{key: value for key, value in result[1].items() if key != lacking})
    assert not evaluation.is_complete(tmp_path / "predictions.npz", result[0])


def test_an_evaluation_on_other_corrupted_images_does_not(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation.save_predictions(tmp_path / "predictions.npz", result[1])
    monkeypatch.setattr(evaluation, "CORRUPTED", 50)
    assert not evaluation.is_complete(tmp_path / "predictions.npz", result[0])


def test_the_artefact_is_weighed_and_timed(result: Result, artefact: Path) -> None:
    found = result[0]["artefact"]
    assert found["bytes"] == artefact.stat().st_size
    assert 0 < found["p50_ms"] <= found["p99_ms"] < 1000


def test_two_artefacts_that_are_timed_in_turn_take_about_the_same_where_they_are_the_same(artefact: Path) -> None:
    ours, theirs = evaluation.time_in_turn(artefact, artefact)
    assert 0.5 < ours / theirs < 2


def test_the_slower_of_two_artefacts_is_the_one_that_works_more(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = evaluation.Artefact.predict

    def twice(self: evaluation.Artefact, photos: np.ndarray) -> np.ndarray:
        if self.path.name == "slow.tflite":
            time.sleep(0.002)
        return predict(self, photos)

    monkeypatch.setattr(evaluation.Artefact, "predict", twice)
    slow = shutil.copyfile(artefact, artefact.with_name("slow.tflite"))
    ours, theirs = evaluation.time_in_turn(slow, artefact)
    assert ours > theirs + 1


def test_the_same_predictions_give_the_same_file(result: Result, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        evaluation.save_predictions(tmp_path / name, result[1])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_predictions_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(gate.GateError, match=r"predictions\.npz does not exist"):
        evaluation.load_predictions(tmp_path / "predictions.npz", {"data_digest": "d1"}, "p1")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_predictions_are_refused_by_name(result: Result, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "predictions.npz"
    evaluation.save_predictions(path, result[1])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(gate.GateError, match=r"predictions\.npz cannot be read"):
        evaluation.load_predictions(path, {"data_digest": "d1"}, "p1")


def test_pickled_predictions_are_refused_and_not_executed(result: Result, tmp_path: Path) -> None:
    arrays = {**result[1], "labels": np.array([object()])}
    np.savez(tmp_path / "predictions.npz", **arrays)
    with pytest.raises(gate.GateError, match="cannot be read"):
        evaluation.load_predictions(tmp_path / "predictions.npz", {"data_digest": "d1"}, "p1")


def test_predictions_without_a_digest_are_refused(result: Result, tmp_path: Path) -> None:
    np.savez(tmp_path / "predictions.npz", **{key: value for key, value in result[1].items() if key != "data_digest"})
    with pytest.raises(gate.GateError, match="lacks data_digest"):
        evaluation.load_predictions(tmp_path / "predictions.npz", {"data_digest": "d1"}, "p1")


def test_the_confusion_plot_has_a_row_of_class_names_per_test_image(result: Result, tmp_path: Path) -> None:
    evaluation.write_confusion(tmp_path / "plots" / "confusion.csv", result[1], NAMES)
    with (tmp_path / "plots" / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(TEST_ROWS)
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert right / len(rows) == result[0]["test"]["accuracy"]


def test_evaluating_does_not_import_tensorflow(artefact: Path) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "from mobilenet_pipeline import evaluation, images\n"
        "pixels, labels = numpy.zeros((4, 32, 32, 3), numpy.uint8), numpy.zeros(4, numpy.uint8)\n"
        f"data = images.Dataset(pixels, labels, numpy.arange(4) < 2, 'd', {NAMES}, 0)\n"
        f"evaluation.evaluate(pathlib.Path({str(artefact)!r}), data, numpy.array([2, 3]))\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
