import numpy as np
import pytest

from mobilenet_pipeline.inference.artefact import Answers
from mobilenet_pipeline.inference.trust import Thresholds, prediction_sets

NAMES = ["cat", "dog", "eel"]
PROBABILITIES = np.array([[0.1, 0.6, 0.3], [0.34, 0.33, 0.33]], np.float32)


def test_a_set_has_the_classes_above_the_threshold():
    assert prediction_sets(PROBABILITIES, 0.3).tolist() == [[False, True, True], [True, True, True]]


def test_no_set_is_empty():
    assert prediction_sets(PROBABILITIES, 1.0).tolist() == [[False, True, False], [True, False, False]]


def test_a_threshold_of_zero_puts_every_class_into_the_set():
    assert prediction_sets(PROBABILITIES, 0.0).all()


def test_a_probability_at_the_threshold_is_in_the_set():
    assert prediction_sets(PROBABILITIES, float(PROBABILITIES[0, 2]))[0, 2]


@pytest.mark.parametrize("least", [0.0, 0.2, 0.33, 0.34, 0.5, 1.0])
def test_the_named_set_is_the_prediction_set_with_the_most_probable_class_first(least):
    remarks = Thresholds(0.95, least).remarks(Answers(PROBABILITIES, None), NAMES)
    for row, members, remark in zip(PROBABILITIES, prediction_sets(PROBABILITIES, least), remarks, strict=True):
        shares = dict(zip(NAMES, row, strict=True))
        assert set(remark["prediction_set"]) == {name for name, member in zip(NAMES, members, strict=True) if member}
        assert remark["prediction_set"] == sorted(remark["prediction_set"], key=lambda name: -shares[name])


def test_an_image_below_the_energy_is_unfamiliar():
    assert Thresholds(energy=2.0).unfamiliar(np.array([1.9, 2.0])).tolist() == [True, False]


def test_a_version_of_an_earlier_release_has_no_thresholds():
    assert Thresholds.of({"version": "1"}) == Thresholds(None, None, None)


def test_an_artefact_without_energies_says_nothing_of_familiarity():
    assert Thresholds(energy=2.0).unfamiliar(None) is None


def test_remarks_name_the_set_and_the_flag():
    answers = Answers(PROBABILITIES, np.array([1.0, 3.0], np.float32))
    assert Thresholds(0.95, 0.3, 2.0).remarks(answers, NAMES) == [
        {"prediction_set": ["dog", "eel"], "unfamiliar": True},
        {"prediction_set": ["cat", "dog", "eel"], "unfamiliar": False},
    ]


def test_remarks_of_a_version_of_an_earlier_release_are_empty():
    none = {"prediction_set": None, "unfamiliar": None}
    assert Thresholds().remarks(Answers(PROBABILITIES, None), NAMES) == [none, none]


def test_thresholds_survive_the_metadata():
    made = Thresholds(0.95, 0.25, None)
    assert Thresholds.of({"thresholds": made.to_json()}) == made
