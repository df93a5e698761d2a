"""Where the CPU time of a training step goes."""

import profile_train
import pytest
import tensorflow as tf


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("_MklNativeDepthwiseConv2dNativeBackpropInput", "depthwise convolutions"),
        ("_MklNativeConv2DBackpropInput", "pointwise convolutions and stem"),
        ("_MklMatMul", "pointwise convolutions and stem"),
        ("_MklNativeFusedBatchNormGradV3", "batch normalisation"),
        ("select_convert_fusion", "ReLU6"),
        ("ResourceApplyKerasMomentum", "optimizer"),
    ],
)
def test_an_operation_counts_for_the_kind_of_its_type(operation: str, kind: str):
    assert profile_train.seconds_by_kind([(operation, 0.5), (operation, 0.25)]) == {kind: 0.75}


def test_an_operation_of_no_kind_is_left_out():
    assert profile_train.seconds_by_kind([("GatherV2", 1.0)]) == {}


def test_a_trace_has_the_operations_of_the_graph(tmp_path):
    ones = tf.ones((256, 256))
    product = tf.function(lambda: tf.matmul(ones, ones) + 1)
    product()
    tf.profiler.experimental.start(str(tmp_path))
    product()
    tf.profiler.experimental.stop()
    spent = profile_train.seconds_by_kind(profile_train.operations(next(tmp_path.rglob("*.xplane.pb"))))
    assert spent["pointwise convolutions and stem"] > 0
