"""What a process tree uses. NVML is a stand-in, because a test machine has no GPU."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mobilenet_pipeline.system import usage

FAMILY = (
    "import subprocess, sys; block = bytearray(60_000_000)\n"
    "if sys.argv[1:]: child = subprocess.Popen([sys.executable, *sys.argv[1:]])\n"
    "print('ready', flush=True); sys.stdin.read()"
)


class Nvml(SimpleNamespace):
    """NVML with three GPUs, of which the last one does not say how busy it is."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        if number > 2:
            raise self.NVMLError
        return number

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name != "GPU-b":
            raise self.NVMLError
        return 1

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:
        if gpu == 2:
            raise self.NVMLError
        return SimpleNamespace(gpu=(50, 100)[gpu])


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())


def measure(seconds: float = 0.3) -> usage.Usage:
    """Measure a process without work."""
    with subprocess.Popen(["sleep", "60"]) as process:
        with usage.measured(process.pid, 0.01) as used:
            time.sleep(seconds)
        process.kill()
    return used


def test_the_memory_of_parent_and_child_is_added() -> None:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FAMILY, "-c", FAMILY], **streams) as process:
        with usage.measured(process.pid, 0.01) as used:
            assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n"] * 2
            time.sleep(0.1)
        process.stdin.close()
    assert 120e6 < used.peak_bytes < 300e6


def test_gpu_seconds_are_the_utilisation_of_all_gpus(nvml: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started = time.monotonic()
    used = measure()
    assert 0.3 < used.gpu_seconds <= 1.5 * (time.monotonic() - started)


@pytest.mark.parametrize(("names", "gpus"), [("1", [1]), ("0, GPU-b", [0, 1]), ("7", []), ("-1", []), ("", [])])
def test_only_visible_gpus_count(nvml: None, monkeypatch: pytest.MonkeyPatch, names: str, gpus: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert usage.gpus() == gpus


def test_the_moments_before_the_end_count(nvml: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with usage.measured(os.getpid(), 60) as used:
        time.sleep(0.3)
    assert used.gpu_seconds >= 1.5 * 0.3


def test_without_a_gpu_there_are_no_gpu_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert measure(0.05).gpu_seconds is None
