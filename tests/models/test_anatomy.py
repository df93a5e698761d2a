from dataclasses import replace
from pathlib import Path

import pytest

from mobilenet_pipeline import config
from mobilenet_pipeline.models import anatomy, costs, network

ROOT = Path(__file__).resolve().parents[2]
SEED = config.load_recipe("seed", ROOT / "params.yaml").candidate("scratch")


def published(alpha: float, size: int) -> list[anatomy.Layer]:
    """The layers of the paper's network: stock strides and 1,000 classes."""
    return costs.layers(SEED.model_copy(update={"alpha": alpha, "input_sizes": [size], "strides": "stock"}), 1000)


@pytest.mark.parametrize(
    ("alpha", "size", "million_multiply_adds"),
    # Tables 6 and 7 of Howard et al. 2017.
    [
        (1.0, 224, 569),
        (0.75, 224, 325),
        (0.5, 224, 149),
        (0.25, 224, 41),
        (1.0, 192, 418),
        (1.0, 160, 290),
        (1.0, 128, 186),
    ],
)
def test_multiply_adds_are_those_of_the_paper(alpha, size, million_multiply_adds):
    # The paper rounds up and down: 290.7 million are 290, 568.7 million are 569.
    assert abs(anatomy.multiply_adds(published(alpha, size)) / 1e6 - million_multiply_adds) < 1


@pytest.mark.parametrize(("alpha", "million_parameters"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_parameters_are_those_of_the_paper(alpha, million_parameters):
    assert round(sum(row.parameters for row in published(alpha, 224)) / 1e6, 1) == million_parameters


@pytest.mark.parametrize(("alpha", "size", "strides"), [(0.25, 32, "stem-1"), (0.5, 48, "stock")])
def test_the_table_of_mobilenet_is_the_count_of_its_keras_model(alpha, size, strides):
    candidate = SEED.model_copy(update={"alpha": alpha, "input_sizes": [size], "strides": strides})
    table = [replace(row, standard_parameters=0, standard_multiply_adds=0) for row in costs.layers(candidate, 10)]
    assert anatomy.count(network.build(candidate, (size, size, 3), 10)) == table


@pytest.mark.parametrize(
    ("architecture", "million_multiply_adds"),
    # Sandler et al. 2018, table 4, and Howard et al. 2019, table 3; here the head of v3 has no hidden layer, 0.6 M.
    [("mobilenet_v2", 301), ("mobilenet_v3_small", 55)],
)
def test_other_architectures_cost_what_their_papers_say(architecture, million_multiply_adds):
    changes = {"architecture": architecture, "input_sizes": [224], "alpha": 1.0}
    layers = costs.layers(SEED.model_copy(update=changes), 1000)
    assert round(anatomy.multiply_adds(layers) / 1e6) == million_multiply_adds


def test_a_pointwise_layer_costs_area_times_both_channels():
    row = next(row for row in costs.layers(SEED, 10) if row.name == "conv_pw_3")
    assert row.output == (8, 8, 128)
    assert row.multiply_adds == 8 * 8 * 128 * 128


def test_a_pair_costs_one_over_channels_plus_one_ninth():
    rows = {row.name: row for row in costs.layers(SEED, 10)}
    pair = rows["conv_dw_5"].multiply_adds + rows["conv_pw_5"].multiply_adds
    assert pair / rows["conv_pw_5"].standard_multiply_adds == pytest.approx(1 / 256 + 1 / 9)


def test_an_odd_map_is_rounded_down_as_keras_does():
    shapes = {row.name: row.output for row in costs.layers(SEED.model_copy(update={"input_sizes": [48]}), 10)}
    assert shapes["conv_pw_13"] == (1, 1, 1024)


def test_a_stem_of_stride_one_costs_four_times_as_much():
    wide = anatomy.multiply_adds(costs.layers(SEED.model_copy(update={"strides": "stem-1"}), 10))
    assert wide / anatomy.multiply_adds(costs.layers(SEED, 10)) == pytest.approx(4, rel=0.01)
