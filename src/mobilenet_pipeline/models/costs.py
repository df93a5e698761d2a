"""What a candidate's layers cost, whatever its architecture."""

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models import anatomy


def layers(candidate: Candidate, classes: int) -> list[anatomy.Layer]:
    """Return the candidate's layers in order, from stem to head.

    Those of MobileNet v1 come from the paper's table, without TensorFlow, those of another architecture from its Keras
    model.
    """
    if candidate.architecture == "mobilenet":
        return anatomy.mobilenet(candidate, classes)
    from mobilenet_pipeline.models import network

    return anatomy.count(network.build(candidate, (candidate.input_size, candidate.input_size, 3), classes))
