import numpy as np

from mobilenet_pipeline.inference.artefact import Answers
from mobilenet_pipeline.inference.trust import Thresholds, most_probable_first, prediction_sets

PROBABILITIES = np.array([[0.1, 0.6, 0.3], [0.34, 0.33, 0.33]], np.float32)


def test_a_set_has_the_classes_above_the_threshold():
    assert prediction_sets(PROBABILITIES, 0.3).tolist() == [[False, True, True], [True, True, True]]


def test_no_set_is_empty():
    assert prediction_sets(PROBABILITIES, 1.0).tolist() == [[False, True, False], [True, False, False]]


def test_a_threshold_of_zero_puts_every_class_into_the_set():
    assert prediction_sets(PROBABILITIES, 0.0).all()


def test_a_probability_at_the_threshold_is_in_the_set():
    assert prediction_sets(PROBABILITIES, float(PROBABILITIES[0, 2]))[0, 2]


def test_the_most_probable_class_comes_first_and_equals_stay_in_order():
    assert most_probable_first(PROBABILITIES[0], np.array([True, True, True])) == [1, 2, 0]
    assert most_probable_first(PROBABILITIES[1], np.array([False, True, True])) == [1, 2]


def test_an_image_below_the_energy_is_unfamiliar():
    assert Thresholds(energy=2.0).unfamiliar(np.array([1.9, 2.0])).tolist() == [True, False]


def test_a_version_of_an_earlier_release_says_neither():
    older = Thresholds.of({"version": "1"})
    assert (older.sets(PROBABILITIES), older.unfamiliar(np.ones(2))) == (None, None)


def test_an_artefact_without_energies_says_nothing_of_familiarity():
    assert Thresholds(energy=2.0).unfamiliar(None) is None


def test_remarks_name_the_set_and_the_flag():
    answers = Answers(PROBABILITIES, np.array([1.0, 3.0], np.float32))
    assert Thresholds(0.95, 0.3, 2.0).remarks(answers, ["cat", "dog", "eel"]) == [
        {"prediction_set": ["dog", "eel"], "unfamiliar": True},
        {"prediction_set": ["cat", "dog", "eel"], "unfamiliar": False},
    ]


def test_remarks_of_a_version_of_an_earlier_release_are_empty():
    none = {"prediction_set": None, "unfamiliar": None}
    assert Thresholds().remarks(Answers(PROBABILITIES, None), ["cat", "dog", "eel"]) == [none, none]


def test_thresholds_survive_the_metadata():
    made = Thresholds(0.95, 0.25, None)
    assert Thresholds.of({"thresholds": made.to_json()}) == made
