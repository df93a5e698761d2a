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

from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.evaluation import evaluate
from mobilenet_pipeline.evaluation.predictions import predictions_of
from mobilenet_pipeline.metrics import conformal, scores

NAMES = [str(digit) for digit in range(10)]
ROWS = 700
TEST_ROWS = np.arange(301, ROWS)
VALIDATION_ROWS = np.arange(0, 100)

Result = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Images whose brightness is their class."""
    labels = np.random.default_rng(0).integers(0, 10, ROWS).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 20, (ROWS, 32, 32, 3))
    pixels = (labels[:, None, None, None] * 23 + noise).astype(np.uint8)
    return Dataset(pixels, labels, np.isin(np.arange(ROWS), TEST_ROWS), "d1", NAMES, 0)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported model that classifies by brightness, with some mistakes."""
    keras = pytest.importorskip("keras")
    from mobilenet_pipeline.evaluation.export import with_energy

    inputs = keras.Input((32, 32, 3), dtype="uint8")
    brightness = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    dense = keras.layers.Dense(10)
    model = keras.Model(inputs, keras.layers.Softmax()(dense(brightness)))
    centres = (np.arange(10) * 23 + 9.5) / 255
    # The nearest centre has the largest 2xc - c²: a linear classifier of the mean of three channels.
    dense.set_weights([np.tile(2 * centres / 3, (3, 1)) * 150, -(centres**2) * 150])
    path = tmp_path_factory.mktemp("artefact") / "model.tflite"
    with_energy(model).export(path, format="litert", verbose=False)
    return path


@pytest.fixture(scope="module")
def result(artefact: Path, dataset: Dataset) -> Result:
    return evaluate.evaluate(artefact, dataset, VALIDATION_ROWS, coverage=0.8)


def test_the_metrics_are_those_of_the_saved_predictions(result: Result) -> None:
    document, predictions = result
    found = scores.evaluate(predictions["probabilities"], predictions["labels"], NAMES)
    error = scores.expected_calibration_error(predictions["probabilities"], predictions["labels"])
    totals = {key: found[key] for key in ("rows", "loss", "accuracy", "macro_accuracy", "top3_accuracy")}
    assert document["test"] == totals | {"calibration_error": error}
    assert document["confusion_matrix"] == found["confusion_matrix"]
    assert document["test"]["accuracy"] > 0.5


def test_images_with_and_without_a_near_twin_are_scored_apart() -> None:
    predictions = {"probabilities": np.eye(4), "labels": np.array([0, 1, 0, 0]), "rows": np.array([3, 5, 8, 9])}
    beside = evaluate.accuracy_beside_twins(predictions, [1, 5, 8])
    assert beside == {"rows": 2, "accuracy_with": 0.5, "accuracy_without": 0.5}


def test_without_near_twins_their_accuracy_is_none() -> None:
    predictions = {"probabilities": np.eye(2), "labels": np.array([0, 1]), "rows": np.array([3, 5])}
    beside = evaluate.accuracy_beside_twins(predictions, [])
    assert beside == {"rows": 0, "accuracy_with": None, "accuracy_without": 1.0}


def test_test_and_validation_are_scored_apart(result: Result) -> None:
    document, predictions = result
    assert (document["test"]["rows"], document["validation"]["rows"]) == (len(TEST_ROWS), len(VALIDATION_ROWS))
    assert not set(predictions["rows"]) & set(predictions["validation_rows"])


def test_test_rows_are_kept_in_ascending_order_with_their_labels(result: Result, dataset: Dataset) -> None:
    _, predictions = result
    assert predictions["rows"].tolist() == sorted(TEST_ROWS)
    assert (predictions["labels"] == dataset.labels[predictions["rows"]]).all()


def test_batches_do_not_change_an_answer(
    artefact: Path, dataset: Dataset, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 7)
    _, predictions = evaluate.evaluate(artefact, dataset, VALIDATION_ROWS)
    np.testing.assert_allclose(predictions["probabilities"], result[1]["probabilities"], atol=1e-6)


def test_labels_that_are_no_classes_are_refused(artefact: Path, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"model\.tflite on the test images: label 1\d"):
        evaluate.evaluate(artefact, replace(dataset, labels=dataset.labels + 10), VALIDATION_ROWS)


def test_accuracy_on_corrupted_images_is_lower(result: Result) -> None:
    document, _ = result
    assert len(document["corruptions"]) == 15
    assert document["corruptions"]["brightness 3"] < document["test"]["accuracy"]


def test_every_corrupted_image_is_kept_as_right_or_wrong(result: Result) -> None:
    document, arrays = result
    corrupted = predictions_of(arrays, document, "p1").facts.corrupted
    assert {name: right.mean() for name, right in corrupted.items()} == pytest.approx(document["corruptions"])
    assert {right.shape for right in corrupted.values()} == {(len(TEST_ROWS),)}


def test_the_prediction_sets_are_those_of_the_saved_predictions(result: Result) -> None:
    document, arrays = result
    found, probabilities = document["prediction_sets"], arrays["probabilities"]
    least = conformal.probability_threshold(arrays["validation_probabilities"], arrays["validation_labels"], 0.8)
    sets = conformal.set_sizes(probabilities, least)
    assert (found["stated_coverage"], found["threshold"], found["calibration_rows"]) == (0.8, least, 100)
    assert found["coverage"] == conformal.covered(probabilities, arrays["labels"], least).mean()
    assert found["mean_size"] == sets.mean() == pytest.approx(mean_of(found["sizes"]))


def mean_of(sizes: dict[str, int]) -> float:
    return sum(int(size) * count for size, count in sizes.items()) / sum(sizes.values())


def test_the_gate_gets_the_threshold_of_the_prediction_sets(result: Result) -> None:
    document, arrays = result
    found = predictions_of(arrays, document, "p1").facts
    assert found.set_threshold == document["prediction_sets"]["threshold"]


def test_an_evaluation_says_how_often_each_kind_of_image_is_flagged(result: Result) -> None:
    flagged = result[0]["unfamiliar"]
    assert 0 < flagged["test"] < 0.15
    assert list(flagged["corruptions"]) == list(result[0]["corruptions"])
    assert list(flagged["other_images"]) == ["digits", "photographs", "stripes", "plain", "noise"]


def test_an_evaluation_without_coverage_has_no_prediction_sets(artefact: Path, dataset: Dataset) -> None:
    document, arrays = evaluate.evaluate(artefact, dataset, VALIDATION_ROWS[:10])
    assert (document["prediction_sets"], predictions_of(arrays, document, "p1").facts.set_threshold) == (None, None)
    assert (document["unfamiliar"]["threshold"], document["unfamiliar"]["test"]) == (None, 0.0)  # ten are too few


def test_an_artefact_without_energies_flags_nothing(
    artefact: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = evaluate.Artefact.answer
    monkeypatch.setattr(evaluate.Artefact, "answer", lambda *words: replace(answer(*words), energy=None))
    document, _ = evaluate.evaluate(artefact, dataset, VALIDATION_ROWS)
    assert document["unfamiliar"] is None


def test_right_and_wrong_take_a_bit_each(result: Result) -> None:
    assert result[1]["corrupted_right"].nbytes == 2 * len(TEST_ROWS)  # 15 corruptions


def test_an_evaluation_of_this_version_is_complete(result: Result) -> None:
    document, arrays = result
    assert evaluate.is_complete(arrays, document)


@pytest.mark.parametrize("lacking", ["corrupted_right", "corrupted_rows"])
def test_an_evaluation_without_an_array_is_incomplete(result: Result, lacking: str) -> None:
    document, arrays = result
    assert not evaluate.is_complete({key: value for key, value in arrays.items() if key != lacking}, document)


def test_an_evaluation_without_prediction_sets_is_complete(result: Result) -> None:
    document, arrays = result
    older = {key: value for key, value in document.items() if key not in ("prediction_sets", "unfamiliar")}
    assert evaluate.is_complete(arrays, older)  # the gate compares no coverage with the champion's


def test_an_evaluation_without_corruptions_is_incomplete(result: Result) -> None:
    document, arrays = result
    assert not evaluate.is_complete(arrays, {key: value for key, value in document.items() if key != "corruptions"})


def test_other_corrupted_images_make_an_evaluation_incomplete(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CORRUPTED", 50)
    document, arrays = result
    assert not evaluate.is_complete(arrays, document)


def test_the_artefact_is_weighed_and_timed(result: Result, artefact: Path) -> None:
    found = result[0]["artefact"]
    assert found["bytes"] == artefact.stat().st_size
    assert 0 < found["p50_ms"] <= found["p99_ms"] < 1000


def test_one_artefact_timed_twice_takes_about_the_same_time(artefact: Path) -> None:
    ours, theirs = evaluate.time_in_turn([artefact, artefact])
    assert 0.5 < ours / theirs < 2


def test_the_slower_artefact_has_the_longer_time(artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = evaluate.Artefact.predict

    def twice(self: evaluate.Artefact, photos: np.ndarray) -> np.ndarray:
        if self.path.name == "slow.tflite":
            time.sleep(0.002)
        return predict(self, photos)

    monkeypatch.setattr(evaluate.Artefact, "predict", twice)
    slow = shutil.copyfile(artefact, artefact.with_name("slow.tflite"))
    ours, theirs = evaluate.time_in_turn([slow, artefact])
    assert ours > theirs + 1


def test_the_confusion_plot_has_a_row_per_test_image(result: Result, tmp_path: Path) -> None:
    evaluate.write_confusion(tmp_path / "plots" / "confusion.csv", result[1], NAMES)
    with (tmp_path / "plots" / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(TEST_ROWS)
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert right / len(rows) == result[0]["test"]["accuracy"]


def test_evaluating_does_not_import_tensorflow(artefact: Path) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "from mobilenet_pipeline.data.dataset import Dataset\n"
        "from mobilenet_pipeline.evaluation import evaluate\n"
        "pixels, labels = numpy.zeros((4, 32, 32, 3), numpy.uint8), numpy.zeros(4, numpy.uint8)\n"
        f"data = Dataset(pixels, labels, numpy.arange(4) < 2, 'd', {NAMES}, 0)\n"
        f"evaluate.evaluate(pathlib.Path({str(artefact)!r}), data, numpy.array([2, 3]))\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
