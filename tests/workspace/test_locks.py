"""One run per recipe, and one decision at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.workspace import locks


def test_a_second_run_of_a_recipe_names_the_first(recipe: Recipe, tmp_path: Path) -> None:
    with locks.only_run(recipe, tmp_path) as first, locks.only_run(recipe, tmp_path) as second:
        assert first is None
        assert second is not None
        assert second.startswith(f"a run of digits is in progress (process {os.getpid()}, since ")


def test_the_lock_of_an_ended_run_is_free(recipe: Recipe, tmp_path: Path) -> None:
    with locks.only_run(recipe, tmp_path):
        pass
    with locks.only_run(recipe, tmp_path) as other:
        assert other is None


def test_runs_of_two_recipes_do_not_wait_for_each_other(workspace: Path) -> None:
    with locks.only_run(load_recipe("digits")), locks.only_run(load_recipe("cifar10")) as other:
        assert other is None


@pytest.mark.parametrize("lock", ["deciding", "only_look"])
def test_a_decision_and_a_look_wait_for_the_one_before(lock: str, workspace: Path) -> None:
    command = (
        "from mobilenet_pipeline.config import load_recipe; from mobilenet_pipeline.workspace import locks\n"
        "print('started', flush=True)\n"
        f"with locks.{lock}(load_recipe('digits')): print('decided')"
    )
    with getattr(locks, lock)(load_recipe("digits")):
        second = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == "started\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
    wait_until(lambda: second.poll() == 0)
    assert second.stdout.read() == "decided\n"
