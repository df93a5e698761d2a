"""Parameters and multiply-adds of each layer: of MobileNet v1 from its table, of any network from its Keras model.

The costs of a k×k kernel from c to c' channels on an h'×w' output are (Howard et al. 2017, section 3.1):

    standard convolution    h'·w'·k·k·c·c'
    depthwise               h'·w'·k·k·c
    pointwise               h'·w'·c·c'
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mobilenet_pipeline.config import Candidate

if TYPE_CHECKING:
    import keras

FILTERS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels at α = 1 of the stem and the 13 depthwise-separable blocks (table 1 of the paper)."""

STRIDES = {
    # As published, for 224 pixels: a 32×32 input is 1×1 after block 12.
    "stock": (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    # Stride 1 in the stem: a 32×32 input ends as 2×2, with four times the multiply-adds.
    "stem-1": (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    # Stride 1 in two places: a 32×32 input ends as 4×4.
    "stem-block12": (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1),
    "stem-block2": (1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    "block2-block4": (2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    # Stride 1 in stem, block 2 and block 12: a 32×32 input ends as 8×8.
    "stem-block2-block12": (1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1),
}


@dataclass(frozen=True)
class Layer:
    """One convolution or the dense head. Counts are for one image.

    `parameters` excludes batch normalisation, whose 4·c' parameters are in `norm_parameters`. `standard_*` are the
    counts of a standard 3×3 convolution in place of a depthwise-separable pair. They are in the pointwise row; the
    depthwise row has 0, and so has every row that was counted from a Keras model.
    """

    name: str
    output: tuple[int, int, int]
    parameters: int
    norm_parameters: int
    multiply_adds: int
    standard_parameters: int = 0
    standard_multiply_adds: int = 0


def mobilenet(candidate: Candidate, classes: int) -> list[Layer]:
    """Return the layers of a MobileNet v1 in order, from stem to head."""
    strides = STRIDES[candidate.strides]
    channels = [int(filters * candidate.alpha) for filters in FILTERS]
    size = -(-candidate.input_size // strides[0])
    stem_parameters = 9 * 3 * channels[0]
    stem_cost = size * size * stem_parameters
    rows = [
        Layer(
            "conv1", (size, size, channels[0]), stem_parameters, 4 * channels[0], stem_cost, stem_parameters, stem_cost
        )
    ]
    for block in range(1, len(FILTERS)):
        before, after = channels[block - 1], channels[block]
        size //= strides[block]  # Keras pads at one end only, so an odd size is rounded down
        area = size * size
        depthwise, pointwise, standard = 9 * before, before * after, 9 * before * after
        rows += [
            Layer(f"conv_dw_{block}", (size, size, before), depthwise, 4 * before, area * depthwise, 0, 0),
            Layer(
                f"conv_pw_{block}",
                (size, size, after),
                pointwise,
                4 * after,
                area * pointwise,
                standard,
                area * standard,
            ),
        ]
    head = channels[-1] * classes
    rows.append(Layer("logits", (1, 1, classes), head + classes, 0, head, head + classes, head))
    return rows


def count(model: "keras.Model") -> list[Layer]:
    """Return the convolutions and dense layers of a model in order, counted from their kernels and outputs.

    A kernel is used once for every position of its output: a (k, k, c, c') kernel costs h'·w'·k·k·c·c'. Pooling,
    activations, sums and products are not counted, as in the papers. The model's input has a fixed size.
    """
    import keras

    rows: dict[str, Layer] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            convolution = layer.input._keras_history.operation.name
            rows[convolution] = replace(rows[convolution], norm_parameters=layer.count_params())
        elif hasattr(layer, "kernel"):
            _, *area, channels = layer.output.shape
            height, width = area or (1, 1)
            cost = height * width * math.prod(layer.kernel.shape)
            rows[layer.name] = Layer(layer.name, (height, width, channels), layer.count_params(), 0, cost)
    return list(rows.values())


def parameters(rows: list[Layer]) -> int:
    """Return the number of all weights, as Keras counts them.

    It includes the moving moments of batch normalisation.
    """
    return sum(row.parameters + row.norm_parameters for row in rows)


def multiply_adds(rows: list[Layer]) -> int:
    """Return the multiply-adds of the network for one image."""
    return sum(row.multiply_adds for row in rows)
