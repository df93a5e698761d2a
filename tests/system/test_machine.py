"""This machine in facts."""

import pytest

from mobilenet_pipeline.system import processor
from mobilenet_pipeline.system.machine import describe_machine


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert {*machine} >= {"cpu", "cores", "memory_gib", "os", "python"}
    assert machine["cores"] >= 1
    assert machine["cpu"]


@pytest.mark.parametrize(
    ("line", "bfloat16"), [("flags\t\t: fpu avx512f avx512_bf16", True), ("flags\t\t: fpu avx2", False)]
)
def test_only_a_processor_with_the_instructions_has_bfloat16(
    line: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_cpuinfo", lambda: ["model name\t: One", line])
    assert describe_machine()["bfloat16"] is bfloat16
