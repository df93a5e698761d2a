import math

import pytest

from mobilenet_pipeline.data import proposal
from mobilenet_pipeline.data.proposal import Facts
from mobilenet_pipeline.models.anatomy import STRIDES, mobilenet, multiply_adds


def facts(**values: object) -> Facts:
    defaults = {
        "path": "pictures",
        "size": 96,
        "resize": "crop",
        "digest": "d",
        "class_names": ["cat", "dog"],
        "train_rows": 4000,
        "test_rows": 1000,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "balance": 0.1,
        "largest_class": 0.6,
        "test_share": 0.2,
        "grouped": False,
        "excluded": 0,
        "found": 5000,
    }
    return Facts(**{**defaults, **values})


@pytest.mark.parametrize(
    ("sides", "size"),
    [([8], 32), ([28], 28), ([30], 28), ([32, 500, 33], 32), ([100], 96), ([224], 224), ([4000], 224)],
)
def test_the_size_is_the_largest_up_to_the_median_side(sides, size):
    assert proposal.image_size(sides) == size


@pytest.mark.parametrize("size", proposal.SIZES)
def test_the_final_map_has_at_least_four_pixels_a_side_where_strides_allow(size):
    assert size // math.prod(STRIDES[proposal.strides_for(size)]) >= 4


@pytest.mark.parametrize("minutes", [10, 60, 600])
def test_both_trainings_fit_into_the_budget(minutes):
    chosen = proposal.candidates(facts(train_rows=100_000), minutes, [])
    work = sum(
        multiply_adds(mobilenet(candidate, 2)) * candidate.epochs * 80_000
        for candidate in chosen.values()
        if candidate.epochs > 1
    )
    assert work <= minutes * 60 * proposal.TRAINED_PER_SECOND


def test_a_small_budget_means_a_smaller_network():
    wide, narrow = (proposal.candidates(facts(train_rows=50_000), minutes, [])["scratch"] for minutes in (2000, 5))
    assert (narrow.alpha, narrow.input_size) < (wide.alpha, wide.input_size)


def test_classes_of_uneven_size_get_weights():
    assert proposal.candidates(facts(largest_class=0.8), 60, [])["scratch"].class_weights == "balanced"
    assert proposal.candidates(facts(largest_class=0.6), 60, [])["scratch"].class_weights == "none"


def test_digits_and_letters_are_not_flipped():
    assert proposal.candidates(facts(class_names=["0", "12"]), 60, [])["scratch"].flip == "none"
    assert proposal.candidates(facts(), 60, [])["scratch"].flip == "random"


@pytest.mark.parametrize("name", ["no", "1e5", "- a", "a: b", 'quote"', "ünïcode", "emoji 😀", "#1", " spaced "])
def test_any_text_is_the_name_of_a_class(name):
    from ruamel.yaml import YAML

    text = proposal.section(
        "r", "m", facts(class_names=[name, "b"]), proposal.candidates(facts(class_names=[name, "b"]), 60, [])
    )
    assert YAML(typ="safe").load(text)["r"]["data"]["class_names"] == [name, "b"]
