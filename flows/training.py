"""The pipeline as a Prefect flow: what runs when, what is tried again, and that it runs once at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import artifacts
from mobilenet_pipeline import environment, layout, pipeline, results, running
from mobilenet_pipeline.config import Recipe, load_recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.judging import Judgement

RETRY_SECONDS: list[float] = [10, 60]
"""Before the second and the third try of what may pass again."""

TRIES = 3
"""How often a run that others overtake tries to promote, before it fails and leaves the decision to the next."""


class Listener(Protocol):
    """Whoever follows a run from the process that it runs in."""

    def begin(self, step: str) -> None:
        """A step starts."""

    def hear(self, step: str, line: str) -> None:
        """The step wrote a line."""

    def end(self, step: str, outcome: str) -> None:
        """The step is over: "ran", "restored", "unchanged" or "failed"."""


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@flow(name="train-and-promote", persist_result=False)
def train_and_promote(recipe: str = "digits", force: bool = False) -> State:
    """Bring every stage of the recipe up to date, judge both candidates, and promote the winner if it is better.

    `force` runs the stages even where nothing changed. The final state's message says in a sentence what came of it.
    """
    environment.prepare()
    chosen = load_recipe(recipe)
    with running.only_run(chosen) as other:
        # The state keeps its name: automations that look for crashed runs know "Completed" and no other.
        return Completed(message=f"Skipped: {other}" if other else run_pipeline(chosen, force))


def run_pipeline(recipe: Recipe, force: bool) -> str:
    """The body of the flow; gives the sentence that sums it up."""
    from mobilenet_pipeline import judging, promotion

    names = pipeline.stage_names(recipe)
    stale = set(names) if force else pipeline.stale(names)
    if not stale and is_settled(recipe):
        return f"Nothing changed: no stage has anything to do. {champion_sentence(recipe)}"
    # What stands before the first stale stage cannot have become stale.
    fresh = next((index for index, name in enumerate(names) if name in stale), len(names))
    done = [pipeline.StageResult(name, "unchanged", 0.0, 0.0) for name in names[:fresh]]
    data, trainings = names[fresh:2], names[2:4]
    done += [stage(name, {}, force) for name in data]
    trains = force or bool((pipeline.stale(trainings) if data else stale) & {*trainings})
    with mlflow_run(recipe, needed=trains) as variables:
        done += [stage(name, variables, force) for name in names[max(fresh, 2) :]]
        with running.deciding(recipe):
            known = judging.recall(recipe)
            judgement: Judgement = known or judge(recipe)
            if known is None or not promotion.carried_out(recipe, known):
                judgement = carry_out(recipe, judgement)
            waiting = promotion.waiting(recipe, judgement)
            verdict = judgement.document | {"leaves": promotion.aliases(recipe)}
        report(recipe, verdict, [{**asdict(each), "changed": each.changed} for each in done])
    opening = "The candidates are the same as before, and so is the verdict: " if known else ""
    ask = (
        f" It waits for approval: mobilenet-pipeline approve {waiting.version} --recipe {recipe.name}, or reject."
        if waiting
        else ""
    )
    return f"{opening}{verdict['reason']}{ask} {champion_sentence(recipe)}"


def carry_out(recipe: Recipe, judgement: "Judgement") -> "Judgement":
    """Promote, unless a person has to say so; where another run was faster, judge against its champion, go by that."""
    from mobilenet_pipeline import promotion

    for left in reversed(range(TRIES)):
        try:
            if promotion.waiting(recipe, judgement):
                promotion.keep_serving(recipe)
            else:
                promote(recipe, judgement)
            break
        except promotion.ChampionChanged:
            if not left:
                raise
            judgement = judge(recipe)
    return judgement


def may_pass_again(task: Any, run: TaskRun, state: State) -> bool:
    """Prefect's form of `pipeline.may_pass_again`."""
    return isinstance(state.data, BaseException) and pipeline.may_pass_again(state.data)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=may_pass_again,
)
def stage(name: str, variables: Mapping[str, str], force: bool) -> pipeline.StageResult:
    """One DVC stage, in a process of its own."""
    log, watcher, follow = get_run_logger(), listener.get(), artifacts.follow_epochs(name)

    def on_line(line: str) -> None:
        log.info(line)
        follow(line)
        if watcher:
            watcher.hear(name, line)

    with shown(name) as tell:
        result = pipeline.run_stage(name, on_line, variables, force)
        tell(result.outcome)
    return result


@task(cache_policy=NO_CACHE)
def judge(recipe: Recipe) -> "Judgement":
    """Register both candidates and hold them against each other and the champion."""
    from mobilenet_pipeline import judging

    with shown("judge"):
        judgement = judging.judge(recipe)
    get_run_logger().info(judgement.document["reason"])
    return judgement


@task(cache_policy=NO_CACHE)
def promote(recipe: Recipe, judgement: "Judgement") -> str | None:
    """Build and try the Bento, then move the aliases; gives the Bento's tag."""
    from mobilenet_pipeline import promotion

    with shown("promote"):
        return promotion.promote(recipe, judgement)


@task(cache_policy=NO_CACHE)
def report(recipe: Recipe, verdict: Mapping[str, Any], stages: list[dict[str, Any]]) -> None:
    """Write results.json and the report, and show both in Prefect."""
    from mobilenet_pipeline.report import write_report

    with shown("report"):
        path = results.write_results(recipe, verdict, stages)
        page = write_report(recipe, Path("."))
        artifacts.publish(recipe, json.loads(path.read_text(encoding="utf-8")), verdict, stages, page)


def is_settled(recipe: Recipe) -> bool:
    """Whether there is nothing to do after the stages: verdict, results and report are there and up to date."""
    from mobilenet_pipeline import judging, promotion

    pages = results.results_path(recipe), layout.report_folder(recipe) / "index.html"
    judgement = judging.recall(recipe) if all(page.exists() for page in pages) else None
    return judgement is not None and promotion.carried_out(recipe, judgement)


def champion_sentence(recipe: Recipe) -> str:
    """Who is champion now."""
    from mobilenet_pipeline import registry

    champion = registry.with_alias(recipe.registered_model, "champion")
    if champion is None:
        return f"{recipe.registered_model} has no champion."
    return f"Version {champion.version} of {recipe.registered_model} ({champion.candidate}) is champion."


@contextmanager
def mlflow_run(recipe: Recipe, needed: bool) -> Iterator[dict[str, str]]:
    """A run in MLflow that this flow's trainings are under; gives the variables that tell them of it."""
    if not needed:
        yield {}
        return
    from mobilenet_pipeline import tracking

    flow_id = str(flow_run.id)
    parent = tracking.parent_run(recipe, flow_id)
    variables = {"MOBILENET_PIPELINE_PARENT_RUN": parent, "PREFECT__FLOW_RUN_ID": flow_id}
    try:
        yield variables
    except BaseException as error:
        # Ctrl-C and Prefect's signals are no Exceptions.
        tracking.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracking.end_run(parent)


@contextmanager
def shown(step: str) -> Iterator[Callable[[str], None]]:
    """Tell the listener that the step begins and how it ended: "ran", unless the body says otherwise."""
    watcher, outcome = listener.get(), ["ran"]
    if watcher:
        watcher.begin(step)
    try:
        yield outcome.append
    except BaseException:
        outcome.append("failed")
        raise
    finally:
        if watcher:
            watcher.end(step, outcome[-1])
