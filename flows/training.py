"""The pipeline as a Prefect flow: what runs when, what is retried, and one run per recipe at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import artifacts
from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.registry import runs
from mobilenet_pipeline.registry.versions import ChampionChanged
from mobilenet_pipeline.release import judging, promotion
from mobilenet_pipeline.release.judging import Judgement
from mobilenet_pipeline.reports import page, results
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import locks, paths
from mobilenet_pipeline.workspace.files import read_json

RETRY_SECONDS: list[float] = [10, 60]
"""Delays before the second and the third try of a stage that may succeed on another try."""

TRIES = 3
"""How often a run tries to promote while other runs change the champion; then it fails, and the next run decides."""


class Listener(Protocol):
    """A display in the process of the run."""

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
    with locks.only_run(chosen) as other:
        # The state keeps its name: automations that look for crashed runs know "Completed" and no other.
        return Completed(message=f"Skipped: {other}" if other else run_pipeline(chosen, force))


def run_pipeline(recipe: Recipe, force: bool) -> str:
    """Bring the stages up to date and release the winner; returns the sentence that sums the run up."""
    promotion.check_ready(recipe)
    names = runner.stage_names(recipe)
    stale = set(names) if force else runner.stale(names)
    # Stages before the first stale one cannot have become stale.
    fresh = next((index for index, name in enumerate(names) if name in stale), len(names))
    done = [runner.StageResult(name, "unchanged", 0.0, 0.0) for name in names[:fresh]]
    data, trainings = runner.data_stages(recipe), runner.train_stages(recipe)
    done += [stage(name, {}, force) for name in names[fresh:] if name in data]
    trains = force or bool((runner.stale(trainings) if len(done) > fresh else stale) & {*trainings})
    with mlflow_run(recipe, needed=trains) as variables:
        done += [stage(name, variables, force) for name in names[len(done) :]]
        return release(recipe, done)


def release(recipe: Recipe, stages: list[runner.StageResult]) -> str:
    """Judge the candidates, apply the verdict and report it; returns the sentence that sums it up."""
    with locks.deciding(recipe):
        known = judging.recall(recipe)
        applied = known is not None and promotion.is_applied(recipe, known)
        if known and applied and reported(recipe) and not any(each.changed for each in stages):
            return f"Nothing changed: no stage has anything to do. {champion_sentence(recipe, known)}"
        judgement: Judgement = known or judge(recipe)
        if not applied:
            judgement = apply(recipe, judgement)
        waiting = promotion.waiting(recipe, judgement)
        verdict = judgement.verdict.model_copy(update={"leaves": promotion.aliases_after(recipe, judgement)})
        report(recipe, verdict, [{**asdict(each), "changed": each.changed} for each in stages])
    opening = "The candidates are the same as before, and so is the verdict: " if known else ""
    ask = (
        f" It waits for approval: mobilenet-pipeline approve {waiting.version} --recipe {recipe.name}, or reject."
        if waiting
        else ""
    )
    return f"{opening}{verdict.reason}{ask} {champion_sentence(recipe, judgement)}"


def apply(recipe: Recipe, judgement: Judgement) -> Judgement:
    """Promote, unless a person has to approve first; returns the judgement that was applied.

    If another run has changed the champion meanwhile, the candidates are judged against the new one.
    """
    for left in reversed(range(TRIES)):
        try:
            if promotion.waiting(recipe, judgement):
                promotion.keep_serving(recipe, judgement.state)
            else:
                promote(recipe, judgement)
            break
        except ChampionChanged:
            if not left:
                raise
            judgement = judge(recipe)
    return judgement


def may_pass_again(task: Any, run: TaskRun, state: State) -> bool:
    """Prefect's form of `pipeline.may_pass_again`."""
    return isinstance(state.data, BaseException) and runner.may_pass_again(state.data)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=may_pass_again,
)
def stage(name: str, variables: Mapping[str, str], force: bool) -> runner.StageResult:
    """One DVC stage, in a process of its own."""
    log, watcher, follow = get_run_logger(), listener.get(), artifacts.follow_epochs(name)

    def on_line(line: str) -> None:
        log.info(line)
        follow(line)
        if watcher:
            watcher.hear(name, line)

    with shown(name) as tell:
        result = runner.run_stage(name, on_line, variables, force)
        tell(result.outcome)
    return result


@task(cache_policy=NO_CACHE)
def judge(recipe: Recipe) -> Judgement:
    """Compare the candidates with each other and the champion, and register them."""
    with shown("judge"):
        judgement = judging.judge(recipe)
    get_run_logger().info(judgement.verdict.reason)
    return judgement


@task(cache_policy=NO_CACHE)
def promote(recipe: Recipe, judgement: Judgement) -> str | None:
    """Build and try the Bento, then move the aliases; returns the Bento's tag."""
    with shown("promote"):
        return promotion.promote(recipe, judgement)


@task(cache_policy=NO_CACHE)
def report(recipe: Recipe, verdict: Verdict, stages: list[dict[str, Any]]) -> None:
    """Write results.json and the report, and show both in Prefect."""
    with shown("report"):
        path = results.write_results(recipe, verdict, stages)
        report_page = page.write_report(recipe, Path("."))
        artifacts.publish(recipe, read_json(path), verdict, stages, report_page)


def reported(recipe: Recipe) -> bool:
    """Return whether results and report of the last verdict are there."""
    return results.results_path(recipe).exists() and (paths.report_folder(recipe) / "index.html").exists()


def champion_sentence(recipe: Recipe, judgement: Judgement) -> str:
    """Return who is champion after the judgement was applied."""
    champion = judgement.state.champion if promotion.waiting(recipe, judgement) else judgement.champion
    if champion is None:
        return f"{recipe.registered_model} has no champion."
    return f"Version {champion.version} of {recipe.registered_model} ({champion.candidate}) is champion."


@contextmanager
def mlflow_run(recipe: Recipe, needed: bool) -> Iterator[dict[str, str]]:
    """Keep an MLflow run as the parent of this flow's trainings; yields the variables that tell them so."""
    if not needed:
        yield {}
        return
    flow_id = str(flow_run.id)
    parent = runs.parent_run(recipe, flow_id)
    variables = {"MOBILENET_PIPELINE_PARENT_RUN": parent, "PREFECT__FLOW_RUN_ID": flow_id}
    try:
        yield variables
    except BaseException as error:
        # Ctrl-C and Prefect's signals are no Exceptions.
        runs.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    runs.end_run(parent)


@contextmanager
def shown(step: str) -> Iterator[Callable[[str], None]]:
    """Tell the listener that the step begins and how it ends: "ran", unless the body says otherwise."""
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
