import sys

import pytest
import services


def test_a_service_that_does_not_start_shows_its_log():
    command = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    with (
        pytest.raises(services.BenchError, match=r"^keras ended before it was ready(.|\n)*no model here$"),
        services.running("keras", command, services.free_port(), {}),
    ):
        pass
