import numpy as np
import pytest

from mobilenet_pipeline.metrics import scores

NAMES = ["cat", "dog", "frog", "ship"]
PROBABILITIES = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.4, 0.3, 0.2, 0.1]], np.float32
)
LABELS = np.array([0, 1, 2, 3], np.uint8)


def test_accuracy_counts_the_most_probable_class() -> None:
    assert scores.evaluate(PROBABILITIES, LABELS, NAMES)["accuracy"] == 0.5


def test_top_3_accuracy_counts_the_three_most_probable_classes() -> None:
    assert scores.evaluate(PROBABILITIES, LABELS, NAMES)["top3_accuracy"] == 0.75


def test_the_loss_is_the_mean_cross_entropy_in_nats() -> None:
    expected = -np.log([0.7, 0.3, 0.6, 0.1]).mean()
    assert scores.evaluate(PROBABILITIES, LABELS, NAMES)["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_certain_and_wrong_answer_costs_the_clipped_loss() -> None:
    found = scores.evaluate(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
    assert found["loss"] == pytest.approx(-np.log(1e-7))


def test_the_loss_and_accuracy_agree_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(10), 500), rng.integers(0, 10, 500)
    found = scores.evaluate(probabilities, labels, [str(i) for i in range(10)])
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, probabilities, labels=range(10)))
    assert found["top3_accuracy"] == sklearn.top_k_accuracy_score(labels, probabilities, k=3, labels=range(10))
    assert found["confusion_matrix"] == sklearn.confusion_matrix(labels, probabilities.argmax(axis=1)).tolist()


def test_the_confusion_matrix_has_a_row_per_actual_class() -> None:
    matrix = scores.evaluate(PROBABILITIES, LABELS, NAMES)["confusion_matrix"]
    assert matrix == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]


def test_accuracy_per_class_is_by_name() -> None:
    found = scores.evaluate(PROBABILITIES, LABELS, NAMES)["per_class_accuracy"]
    assert found == {"cat": 1.0, "dog": 0.0, "frog": 1.0, "ship": 0.0}


def test_a_class_without_images_has_no_accuracy() -> None:
    found = scores.evaluate(PROBABILITIES[:3], LABELS[:3], NAMES)["per_class_accuracy"]
    assert found["ship"] is None


def test_between_equal_probabilities_the_first_class_is_predicted() -> None:
    found = scores.evaluate(np.full((2, 4), 0.25), np.array([0, 3]), NAMES)
    assert (found["accuracy"], found["top3_accuracy"]) == (0.5, 0.5)


def test_parts_do_not_change_the_top_3_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(10), 100).astype(np.float32), rng.integers(0, 10, 100)
    whole = scores.evaluate(probabilities, labels, [str(i) for i in range(10)])
    monkeypatch.setattr(scores, "TOGETHER", 7)
    assert scores.evaluate(probabilities, labels, [str(i) for i in range(10)]) == whole


def test_few_classes_are_all_shown() -> None:
    assert scores.shown_classes([np.diag([3, 1, 2])]) == [0, 1, 2]


def test_of_many_classes_the_worst_and_the_best_are_shown() -> None:
    rows = np.full(40, 20)
    rows[3] = 0  # a class without images is not shown
    right = np.where(rows, np.arange(40)[::-1] % 20, 0)
    matrix = np.diag(right)
    matrix[:, 0] += rows - right
    shown = scores.shown_classes([matrix])
    assert (len(shown), shown[:2], shown[-2:], 3 in shown) == (20, [19, 39], [20, 0], False)


def test_in_the_macro_accuracy_every_class_counts_alike() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    always_the_first = np.tile([0.9, 0.1, 0.0], (10, 1))
    metrics = scores.evaluate(always_the_first, labels, ["common", "rare", "absent"])
    assert (metrics["accuracy"], metrics["macro_accuracy"]) == (0.8, 0.5)


@pytest.mark.parametrize(
    ("probabilities", "labels", "names", "message"),
    [
        (PROBABILITIES[0], LABELS, NAMES, "must be"),
        (PROBABILITIES[:3], LABELS, NAMES, "3 rows of probabilities do not fit 4 labels"),
        (PROBABILITIES[:0], LABELS[:0], NAMES, "no images"),
        (PROBABILITIES, LABELS, NAMES[:3], "4 columns"),
        (PROBABILITIES, LABELS, ["cat"] * 4, "different class names"),
        (PROBABILITIES * np.nan, LABELS, NAMES, "NaN or infinity, the first is row 0"),
        (PROBABILITIES * 2, LABELS, NAMES, "do not sum to 1, the first is row 0"),
        (np.array([[1.5, -0.5]]), np.array([0]), ["a", "b"], "negative"),
        (PROBABILITIES, LABELS + 1, NAMES, "label 4 of row 3"),
        (PROBABILITIES, LABELS.astype(float), NAMES, "must be integers"),
    ],
)
def test_invalid_arguments_are_refused_with_the_value(
    probabilities: np.ndarray, labels: np.ndarray, names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scores.evaluate(probabilities, labels, names)


def test_the_wilson_interval_is_the_one_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(87, 100).proportion_ci(0.95, method="wilson")
    assert scores.wilson_interval(87, 100) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (0, 0)])
def test_the_wilson_interval_stays_between_0_and_1(right: int, rows: int) -> None:
    low, high = scores.wilson_interval(right, rows)
    assert 0 <= low < high <= 1


def test_more_right_answers_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="11 right answers in 10 rows"):
        scores.wilson_interval(11, 10)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def test_probabilities_that_labels_are_drawn_from_are_calibrated(calibrated):
    logits, labels = calibrated(20_000)
    assert scores.expected_calibration_error(softmax(logits), labels) < 0.015


def test_calibration_error_is_confidence_minus_accuracy():
    probabilities = np.tile([0.7, 0.3], (100, 1))
    labels = (np.arange(100) % 2).astype(np.int64)  # half are right, in every bin
    assert scores.expected_calibration_error(probabilities, labels) == pytest.approx(0.2)


def test_bins_hold_equal_numbers_and_at_least_50_images(calibrated):
    logits, labels = calibrated(1000)
    assert scores.reliability(softmax(logits[:360]), labels[:360])[2].tolist() == [52, 52, 52, 51, 51, 51, 51]
    assert len(scores.reliability(softmax(logits), labels)[2]) == 15
