import keras
import numpy as np
import pytest
import tensorflow as tf
from small_training import SMALL, coloured, trained

from mobilenet_pipeline.models import initial, network
from mobilenet_pipeline.training import optimizer, steps
from mobilenet_pipeline.training.batches import Images, training_batches


@pytest.mark.parametrize("precision", ["pointwise_bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_layers_of_short_numbers_learn(precision):
    # Twice as long as in float32: the first steps of float16 are left out until its scale of the loss is found.
    result = trained(SMALL.model_copy(update={"epochs": 8, "precision": precision}))
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert {str(variable.dtype) for variable in result.model.variables if "seed" not in variable.path} == {"float32"}


def test_a_float16_overflow_skips_the_step_and_halves_the_scale():
    candidate = SMALL.model_copy(update={"precision": "mixed_float16"})
    model = network.build_trained(candidate, 2)
    scaled = optimizer.optimizer_of(candidate, 0.05)
    scaled.build(model.trainable_variables)
    scaled.dynamic_scale.assign(2.0**40)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    run = steps.steps_in_graph(tf.distribute.get_strategy(), model, scaled, candidate, 16)
    run(iter(training_batches(coloured(16), candidate, 16, 1)), tf.constant(1), 32)
    assert float(scaled.dynamic_scale) == 2.0**39
    assert all(np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True))


class FirstAndLast:
    """A training of `SMALL` with changes: its model, and the model's weights before the first step."""

    def __init__(self, **changes: int) -> None:
        self.first: dict[str, list[np.ndarray]] = {}
        draw = initial.draw

        def note(model: keras.Model, seed: int) -> None:
            draw(model, seed)
            self.first = {layer.name: layer.get_weights() for layer in model.layers}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(initial, "draw", note)
            self.model = trained(SMALL.model_copy(update=changes)).model

    def unchanged(self, layer: str) -> list[bool]:
        """Return for each weight of the layer whether it is what it was before the first step."""
        last = self.model.get_layer(layer).get_weights()
        return [np.array_equal(a, b) for a, b in zip(self.first[layer], last, strict=True)]


@pytest.fixture(scope="module")
def frozen() -> FirstAndLast:
    return FirstAndLast(frozen=3)


@pytest.mark.parametrize("layer", ["conv1", "conv1_bn", "conv_dw_2", "conv_pw_2_bn"])
def test_frozen_blocks_keep_their_weights(frozen, layer):
    assert all(frozen.unchanged(layer))


@pytest.mark.parametrize("layer", ["conv_dw_3", "conv_pw_3_bn"])
def test_fine_tuned_blocks_learn(frozen, layer):
    assert not frozen.unchanged(layer)[0]


def test_without_frozen_blocks_the_stem_learns():
    assert FirstAndLast().unchanged("conv1") == [False]


@pytest.fixture(scope="module")
def stepper() -> steps.Stepper:
    model = network.build_trained(SMALL, 2)
    return steps.Stepper(SMALL, model, tf.distribute.get_strategy(), coloured(64))


def test_a_rehearsal_leaves_weights_and_optimizer_as_they_were(stepper):
    stepper.set_length(8)
    before = stepper.arrays()
    stepper.rehearse(32, 2)
    assert all(np.array_equal(before[name], value) for name, value in stepper.arrays().items())


def test_restored_arrays_are_those_that_were_taken(stepper):
    before = stepper.arrays()
    stepper.set_length(8)
    stepper.take(stepper.batches(0, 1), 2, 32)
    changed = stepper.arrays()
    stepper.restore(before)
    assert not np.array_equal(changed["weight_0"], before["weight_0"])
    assert all(np.array_equal(before[name], value) for name, value in stepper.arrays().items())


def test_balanced_weights_give_every_class_the_same_total_weight():
    labels = np.array([0] * 6 + [1] * 2, np.uint8)
    weights = steps.balanced(labels, 2)
    assert np.bincount(labels, weights[labels]).tolist() == pytest.approx([4, 4])
    assert weights[labels].mean() == pytest.approx(1)


def test_a_rare_class_moves_the_head_as_much_as_a_frequent_one_if_balanced():
    images = coloured(16)
    labels = np.array([0] * 14 + [1] * 2, np.int32)

    def slopes(weights: np.ndarray | None) -> np.ndarray:
        model = network.build_trained(SMALL, 2)
        model.get_layer("logits").set_weights([np.zeros((256, 2)), np.zeros(2)])
        compute = steps.gradients_of(model, keras.optimizers.SGD(), SMALL, 16, weights)
        return np.asarray(compute(tf.constant(images.pixels), tf.constant(labels), 32)[0][-1])

    # With equal logits, the bias moves towards the class that weighs more.
    assert slopes(None) == pytest.approx([-0.375, 0.375], abs=1e-5)
    assert slopes(steps.balanced(labels, 2)) == pytest.approx([0, 0], abs=1e-5)


def test_balanced_candidates_train_with_the_weights_of_their_labels(monkeypatch):
    given: list[np.ndarray | None] = []
    monkeypatch.setattr(steps, "steps_in_graph", lambda *words: given.append(words[-1]))
    rare = Images(coloured(20).pixels, np.array([0] * 16 + [1] * 4))
    for kind in ("none", "balanced"):
        candidate = SMALL.model_copy(update={"class_weights": kind})
        steps.Stepper(candidate, network.build_trained(SMALL, 2), tf.distribute.get_strategy(), rare)
    assert given[0] is None
    assert given[1].tolist() == [0.625, 2.5]


def test_a_stop_request_ends_a_validation():
    validator = steps.Validator(SMALL, network.build_trained(SMALL, 2), coloured(32))
    assert validator.logits(32, 32, should_stop=lambda: True) is None
    assert validator.logits(20, 32).shape == (20, 2)
