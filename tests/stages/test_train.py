import os
import signal

import pytest

from mobilenet_pipeline.stages.train import progress, stop_on_signal
from mobilenet_pipeline.training.loop import Epoch


def test_an_epoch_is_a_line_with_a_bar_and_the_time_left():
    row = Epoch(2, 0.1, 1.5, 0.5, 1.25, 0.625, 10.0, 32)
    line = "██████████░░░░░░░░░░ epoch 2/4 loss 1.500 accuracy 0.500 validation 1.250 0.625 10.0 s, 1:20 left"
    assert progress(row, 4, 80.9) == line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_stop_request(number):
    previous = signal.getsignal(number)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        assert signal.getsignal(number) == previous  # a second signal ends the process
    assert signal.getsignal(number) == previous
