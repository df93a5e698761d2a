"""Run stages that do not depend on each other at the same time."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.stages.runner import EXPECTED, StagesFailed
from mobilenet_pipeline.system import process
from mobilenet_pipeline.system.usage import gpus

SETTING = "MOBILENET_PIPELINE_JOBS"
"""The variable with the number of stages that may run at the same time."""
ALL = 1000
"""More stages than a recipe has."""
TOGETHER = 2
"""Stages that run at the same time by default."""
Result = TypeVar("Result", covariant=True)


class Started(Protocol[Result]):
    """A stage that runs in another thread; a `Future` is one."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call `fn` once the stage has ended."""

    def result(self) -> Result:
        """Return the stage's result, or raise its error."""


def number_of_jobs(recipe: Recipe, given: int | None, cluster: str | None = None) -> int:
    """Return how many stages may run at the same time: `given`, else the variable's value, else the default.

    The default is all on a cluster, and 2 on a machine with two cores or more: most of a stage's start uses one core.
    It is 1 on a machine with a GPU, whose memory stages would share, with TF_CONFIG, for a recipe with `cpu_minutes`,
    which would buy fewer steps beside another training, and on the cluster `local`: each stage has one of its own.

    Raises ValueError if it is no whole number from 1 on, or more than 1 on several machines: their workers train one
    candidate after the other.
    """
    name, value = "jobs", str(given)
    if given is None:
        name, value = SETTING, os.environ.get(SETTING) or str(_default(recipe, cluster))
    if not re.fullmatch(r"0*[1-9]\d*", value, re.ASCII):
        raise ValueError(f"{name} is {value!r}; give the number of stages that may run at the same time, 1 or more")
    if int(value) > 1 and os.environ.get("TF_CONFIG"):
        raise ValueError(
            f"{name} is {value!r}, and the machines of TF_CONFIG train one candidate after the other; set {name} to 1, "
            "or unset TF_CONFIG"
        )
    return int(value)


def _default(recipe: Recipe, cluster: str | None) -> int:
    if cluster not in (None, "local"):
        return ALL
    budget = any(candidate.cpu_minutes for candidate in recipe.candidates.values())
    alone = cluster or budget or os.environ.get("TF_CONFIG") or gpus() or len(os.sched_getaffinity(0)) < TOGETHER
    return 1 if alone else TOGETHER


def side_by_side(
    predecessors: Mapping[str, Sequence[str]],
    jobs: int,
    start: Callable[[str], Started[Result]],
    note: Callable[[Result], object],
) -> dict[str, Result]:
    """Run stages, at most `jobs` at a time, each as soon as its predecessors have ended; return their results.

    Of the stages that may start, the first of `predecessors` starts first. `start` starts a stage in another thread.
    `note` is called in this thread with each result. After a failure, no stage starts, and those that run go on to
    their end. Then the failure is raised; StagesFailed if there are several. Any other end of this function, as by
    Ctrl-C, ends the stages' children first.
    """
    order, places = TopologicalSorter(predecessors), {name: place for place, name in enumerate(predecessors)}
    order.prepare()
    ready: list[str] = []
    running: dict[str, Started[Result]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    results: dict[str, Result] = {}
    failures: list[Exception] = []

    def begin(name: str) -> None:
        running[name] = start(name)
        running[name].add_done_callback(lambda _: ended.put(name))

    with process.grouped() as children:
        try:
            while True:
                ready = sorted([*ready, *order.get_ready()], key=places.__getitem__)
                while ready and len(running) < jobs and not failures:
                    begin(ready.pop(0))
                if not running:
                    break
                name = ended.get()
                try:
                    results[name] = running.pop(name).result()
                    note(results[name])
                    order.done(name)
                except Exception as error:
                    failures.append(error)
        except BaseException:
            children.end()
            for stage in running.values():
                with suppress(BaseException):
                    stage.result()
            raise
    if failures:
        raise _together(failures)
    return results


def _together(failures: list[Exception]) -> Exception:
    """Return one error for all: a fault of the program, if there is one, is not hidden in a sentence."""
    faults = [failure for failure in failures if not isinstance(failure, EXPECTED)]
    return (faults or failures)[0] if faults or len(failures) == 1 else StagesFailed(failures)
