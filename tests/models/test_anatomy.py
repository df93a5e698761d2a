from pathlib import Path

import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.models import anatomy

ROOT = Path(__file__).resolve().parents[2]
SEED = config.load_recipe("seed", ROOT / "params.yaml").candidate("scratch")


def test_the_published_network_has_its_published_cost():
    published = SEED.model_copy(update={"input_sizes": [224]})
    layers = anatomy.layers(published, 1000)
    assert round(anatomy.multiply_adds(layers) / 1e6) == 569  # table 8 of the paper
    assert round(sum(row.parameters for row in layers) / 1e6, 1) == 4.2


def test_a_pointwise_layer_costs_area_times_both_channels():
    row = next(row for row in anatomy.layers(SEED, 10) if row.name == "conv_pw_3")
    assert row.output == (8, 8, 128)
    assert row.multiply_adds == 8 * 8 * 128 * 128


def test_a_pair_costs_one_over_channels_plus_one_ninth():
    rows = {row.name: row for row in anatomy.layers(SEED, 10)}
    pair = rows["conv_dw_5"].multiply_adds + rows["conv_pw_5"].multiply_adds
    assert pair / rows["conv_pw_5"].standard_multiply_adds == pytest.approx(1 / 256 + 1 / 9)


def test_an_odd_map_is_rounded_down_as_keras_does():
    shapes = {row.name: row.output for row in anatomy.layers(SEED.model_copy(update={"input_sizes": [48]}), 10)}
    assert shapes["conv_pw_13"] == (1, 1, 1024)


def test_a_stem_of_stride_one_costs_four_times_as_much():
    wide = anatomy.multiply_adds(anatomy.layers(SEED.model_copy(update={"strides": "stem-1"}), 10))
    assert wide / anatomy.multiply_adds(anatomy.layers(SEED, 10)) == pytest.approx(4, rel=0.01)
