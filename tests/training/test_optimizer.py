from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mobilenet_pipeline import config
from mobilenet_pipeline.models import initial, network
from mobilenet_pipeline.training import optimizer

ROOT = Path(__file__).resolve().parents[2]
PLAIN = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
MUON = PLAIN.model_copy(update={"muon_rate": 0.02})
RATE = 0.125


def stepped(candidate: config.Candidate) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Variables by path, before and after a step whose gradients are 1 or -1.

    With these and a rate of a power of two, only the last sum of a step is rounded, however it is computed.
    """
    model = network.build_trained(candidate, 10)
    initial.draw(model, 0)  # Keras seeds from numbers that other threads use, too
    variables = model.trainable_variables
    chosen = optimizer.optimizer_of(candidate, RATE)
    chosen.build(variables)
    before = {v.path: np.array(v) for v in variables}
    rng = np.random.default_rng(0)
    chosen.apply([tf.constant(rng.choice([-1, 1], v.shape).astype(np.float32)) for v in variables])
    return before, {v.path: np.array(v) for v in variables}


@pytest.mark.parametrize(("candidate", "count"), [(PLAIN, 1 + 13 + 1), (MUON, 1 + 1)])
def test_muon_takes_pointwise_kernels_out_of_weight_decay(candidate, count):
    variables = network.build_trained(candidate, 10).trainable_variables
    chosen = [v.path for v, flag in zip(variables, optimizer.decayed(variables, candidate), strict=True) if flag]
    assert len(chosen) == count
    assert not any("dw" in path or "bn" in path or "bias" in path for path in chosen)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape):
    # A mild spread, as momentum has: three iterations do not lift the smallest of a wide one.
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    spread = np.linspace(0.2, 1, min(shape))
    found = optimizer.orthogonal(tf.constant((left * spread) @ right, tf.float32)).numpy()
    inner = left.T @ found @ right.T
    assert np.allclose(inner, np.diag(np.diag(inner)), atol=1e-4)
    assert np.diag(inner) == pytest.approx(1, abs=0.4)


def test_muon_holds_a_kernel_at_the_length_of_an_orthogonal_one():
    _, after = stepped(MUON)
    kernel = next(value for path, value in after.items() if "conv_pw_6" in path and path.endswith("kernel"))
    assert kernel.shape == (1, 1, 64, 128)
    assert np.linalg.norm(kernel) == pytest.approx(8, rel=1e-5)


def test_muon_turns_a_pointwise_kernel_by_its_rate():
    before, after = stepped(MUON)
    path = next(path for path in after if "conv_pw_6" in path and path.endswith("kernel"))
    old, new = (side[path].ravel() / np.linalg.norm(side[path]) for side in (before, after))
    # The initial length is not yet the one that the rate is relative to.
    length = np.linalg.norm(before[path]) / 8
    assert np.arccos(old @ new) == pytest.approx(MUON.muon_rate * RATE / MUON.learning_rate / length, rel=0.3)


def test_muon_leaves_all_other_variables_to_nesterov():
    (_, plain), (_, muon) = stepped(PLAIN), stepped(MUON)
    distance = {path: float(np.abs(plain[path] - muon[path]).max()) for path in plain}
    differ = {path for path, far in distance.items() if far > 1e-7}
    pointwise = {path for path in plain if "conv_pw" in path and path.endswith("kernel")}
    assert len(pointwise) == 13
    assert differ == pointwise, distance


def test_nesterov_moves_as_that_of_keras():
    gradients = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    moved = []
    for chosen in (
        optimizer.optimizer_of(PLAIN, RATE),
        keras.optimizers.SGD(RATE, momentum=optimizer.MOMENTUM, nesterov=True),
    ):
        variable = keras.Variable(np.ones(4, np.float32))
        chosen.build([variable])
        for gradient in gradients:  # the momentum of a step is in the next ones
            chosen.apply([tf.constant(gradient)])
        moved.append(np.array(variable))
    assert moved[0] == pytest.approx(moved[1], rel=1e-6)
