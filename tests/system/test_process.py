"""A child process that ends with whoever started it."""

import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from waiting import alive

from mobilenet_pipeline.system.process import grouped, leashed


def test_a_command_that_finishes_gives_its_code_and_its_time() -> None:
    busy = "import sys, time\nwhile time.process_time() < 0.5: pass\nsys.exit(3)"
    with leashed([sys.executable, "-c", busy], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
    assert child.returncode == 3
    assert child.cpu_seconds > 0.5


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    stubborn = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    with leashed([sys.executable, "-c", stubborn], grace=0.5, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        process = int(child.stdout.readline())
        started = time.monotonic()
    assert not alive(process)
    assert time.monotonic() - started > 0.4
    assert child.returncode == 128 + signal.SIGKILL


def test_what_a_finished_command_left_behind_is_ended() -> None:
    parent = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    with leashed([sys.executable, "-c", parent], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        left = int(child.stdout.readline())
    assert not alive(left)
    assert child.returncode == 0


def test_a_process_whose_parent_ends_gets_one_sigterm(tmp_path: Path) -> None:
    count = tmp_path / "count"
    slow = (
        "import pathlib, signal, time; stops = []; signal.signal(signal.SIGTERM, lambda *_: stops.append(1)); "
        "print('ready', flush=True)\n"
        "while not stops: time.sleep(0.01)\n"
        f"time.sleep(1); pathlib.Path({str(count)!r}).write_text(str(len(stops)))"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {slow!r}])"
    with leashed([sys.executable, "-c", parent], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
    assert count.read_text() == "1"


def test_a_command_can_be_ended_as_by_ctrl_c_and_its_children_by_sigterm() -> None:
    """It also works where this process ignores Ctrl-C, as a shell's background jobs do."""
    parent = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "try: print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: raise SystemExit(100 - child.wait())"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with leashed([sys.executable, "-c", parent], ending=signal.SIGINT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.returncode == 100 + signal.SIGTERM


def sleep(started: "Future[int]") -> None:
    """Run a child that sleeps, and tell its process."""
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    with leashed(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        started.set_result(int(child.stdout.readline() or 0))
        child.stdout.read()


def test_a_group_ends_the_children_of_all_threads() -> None:
    started: list[Future[int]] = [Future(), Future()]
    with grouped() as group, ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(copy_context().run, sleep, each) for each in started]
        children = [each.result() for each in started]
        group.end()
        for thread in threads:
            with pytest.raises(KeyboardInterrupt):
                thread.result()
    assert not any(map(alive, children))


def test_a_child_of_an_ended_group_ends_at_once() -> None:
    with grouped() as group:
        group.end()
        with pytest.raises(KeyboardInterrupt):
            sleep(started := Future())
    assert not alive(started.result())


def test_a_child_outside_a_group_stays() -> None:
    with leashed(["sleep", "60"]) as child:
        with grouped() as group:
            group.end()
        assert not child.ended
