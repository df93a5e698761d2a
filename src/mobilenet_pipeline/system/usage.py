"""What a process and its descendants use while they run: memory, and the machine's GPUs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

SECONDS = 0.5
"""Between two measurements, which take milliseconds."""


@dataclass
class Usage:
    """The most memory at once, in bytes, and GPU seconds: the GPUs' utilisation, summed over the time.

    `gpu_seconds` is None on a machine without an NVIDIA GPU.
    """

    peak_bytes: int = 0
    gpu_seconds: float | None = None


@contextmanager
def measured(pid: int, interval: float = SECONDS) -> Iterator[Usage]:
    """Measure a process and its descendants during the `with` body, every `interval` seconds; yields the usage so far.

    The GPUs are those of CUDA_VISIBLE_DEVICES, else all; what other programs do on them counts, too.
    """
    usage, ended = Usage(), threading.Event()
    thread = threading.Thread(target=_measure, args=(pid, interval, usage, ended), daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        ended.set()
        thread.join()


def _measure(pid: int, interval: float, usage: Usage, ended: threading.Event) -> None:
    devices = gpus()
    usage.gpu_seconds = 0.0 if devices else None
    before = time.monotonic()
    while True:
        # Not the kernel's `ru_maxrss`: it counts the memory of the parent before `exec`, too.
        usage.peak_bytes = max(usage.peak_bytes, _memory(pid))
        last = ended.wait(interval)
        now = time.monotonic()
        if usage.gpu_seconds is not None:
            usage.gpu_seconds += sum(map(_utilisation, devices)) * (now - before)
        before = now
        if last:
            return


def _memory(pid: int) -> int:
    """Return the resident memory of a process and its descendants, in bytes; 0 if it has ended."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                total += each.memory_info().rss
    return total


def gpus() -> list[Any]:
    """Return NVML's handles of the GPUs that a stage may use."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, or no GPU: NVML has an error for each
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = names.split(",") if names is not None else map(str, range(pynvml.nvmlDeviceGetCount()))
    handles = []
    for name in map(str.strip, chosen):
        with suppress(pynvml.NVMLError):
            by_number = name.isdecimal()
            handles.append(
                pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(name)
            )
    return handles


def _utilisation(gpu: Any) -> float:
    """Return the share of the last moments in which the GPU computed; 0 if it does not say."""
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100
    except pynvml.NVMLError:
        return 0.0
