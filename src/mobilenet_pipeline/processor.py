"""What this machine's processor is, and what it computes in."""

import platform
from pathlib import Path


def computes_in_bfloat16() -> bool:
    """Whether the processor says that it has instructions for it (avx512_bf16, amx_bf16, bf16); only Linux asks it."""
    return any("bf16" in line for line in _cpuinfo())


def model() -> str:
    """The processor's name."""
    models = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
