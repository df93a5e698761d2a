"""The machine that a result was measured on."""

import os
import platform
from typing import Any

from mobilenet_pipeline.system import processor


def describe_machine() -> dict[str, Any]:
    """Return processor, bfloat16, cores, memory (GiB), system and Python version."""
    import psutil

    return {
        "cpu": processor.model(),
        "bfloat16": processor.computes_in_bfloat16(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }
