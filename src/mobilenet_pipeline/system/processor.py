"""The processor of this machine: its name and its support for bfloat16."""

import platform
from pathlib import Path


def computes_in_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; False except on Linux.

    The flags are avx512_bf16, amx_bf16 and bf16.
    """
    return any("bf16" in line for line in _cpuinfo())


def model() -> str:
    """Return the processor's name."""
    models = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
