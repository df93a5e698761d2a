"""The pipeline as a Prefect flow: the order of steps, retries, and one run per recipe at a time."""

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
from mobilenet_pipeline.registry.aliases import ChampionChanged
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
"""How often a run tries to promote if other runs change the champion. Then it fails, and the next run decides."""


class Listener(Protocol):
    """A display in the process of the run; flows.display.Display is one."""

    def begin(self, step: str) -> None:
        """Show that a step starts."""

    def hear(self, step: str, line: str) -> None:
        """Show a line of the step."""

    def end(self, step: str, outcome: str) -> None:
        """Show the outcome: "ran", "restored", "unchanged" or "failed"."""


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@flow(name="train-and-promote", persist_result=False)
def train_and_promote(recipe: str = "digits", force: bool = False) -> State:
    """Bring all stages up to date, judge the candidates, and promote the winner.

    The winner is promoted only if it passes every check. `force` runs the stages even if nothing changed. The final
    state's message is one sentence with the result.
    """
    environment.prepare()
    loaded = load_recipe(recipe)
    with locks.only_run(loaded) as other_run:
        # Keep the name "Completed": automations that detect crashed runs know no other name.
        return Completed(message=f"Skipped: {other_run}" if other_run else run_pipeline(loaded, force))


def run_pipeline(recipe: Recipe, force: bool) -> str:
    """Bring the stages up to date, release the winner, and return a summary."""
    promotion.check_ready(recipe)
    names = runner.stage_names(recipe)
    stale = set(names) if force else runner.stale(names)
    # Stages before the first stale stage cannot become stale.
    fresh = next((index for index, name in enumerate(names) if name in stale), len(names))
    done = [runner.StageResult(name, "unchanged", 0.0, 0.0) for name in names[:fresh]]
    data, trainings = runner.data_stages(recipe), runner.train_stages(recipe)
    done += [stage(name, {}, force) for name in names[fresh:] if name in data]
    trains = force or bool((runner.stale(trainings) if len(done) > fresh else stale) & {*trainings})
    with mlflow_run(recipe, needed=trains) as variables:
        done += [stage(name, variables, force) for name in names[len(done) :]]
        return release(recipe, done)


def release(recipe: Recipe, stages: list[runner.StageResult]) -> str:
    """Judge the candidates, apply the verdict, report it, and return a summary."""
    with locks.deciding(recipe):
        known = judging.recall(recipe)
        applied = known is not None and promotion.is_applied(recipe, known)
        if known and applied and reported(recipe) and not any(result.changed for result in stages):
            return f"Nothing changed: all stages are up to date. {champion_sentence(recipe, known)}"
        judgement: Judgement = known or judge(recipe)
        if not applied:
            judgement = apply(recipe, judgement)
        waiting = promotion.waiting(recipe, judgement)
        verdict = judgement.verdict.model_copy(update={"leaves": promotion.aliases_after(recipe, judgement)})
        report(recipe, verdict, [{**asdict(result), "changed": result.changed} for result in stages])
    opening = "The candidates and the verdict have not changed: " if known else ""
    request = (
        f" It waits for approval: mobilenet-pipeline approve {waiting.version} --recipe {recipe.name}, or reject."
        if waiting
        else ""
    )
    return f"{opening}{verdict.reason}{request} {champion_sentence(recipe, judgement)}"


def apply(recipe: Recipe, judgement: Judgement) -> Judgement:
    """Apply the judgement, and return the judgement that was applied.

    A winner that waits for approval is not promoted. If another run has changed the champion meanwhile, the candidates
    are judged against the new champion.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            if promotion.waiting(recipe, judgement):
                promotion.keep_serving(recipe, judgement.state)
            else:
                promote(recipe, judgement)
            break
        except ChampionChanged:
            if not tries_left:
                raise
            judgement = judge(recipe)
    return judgement


def may_pass_again(task: Any, run: TaskRun, state: State) -> bool:
    """Return whether Prefect should retry; see `runner.may_pass_again`."""
    return isinstance(state.data, BaseException) and runner.may_pass_again(state.data)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=may_pass_again,
)
def stage(name: str, variables: Mapping[str, str], force: bool) -> runner.StageResult:
    """Run one DVC stage in its own process, and return its result."""
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
    """Build and check the Bento, move the aliases, and return the Bento's tag."""
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
    """Return whether results and report of the last verdict exist."""
    return results.results_path(recipe).exists() and (paths.report_folder(recipe) / "index.html").exists()


def champion_sentence(recipe: Recipe, judgement: Judgement) -> str:
    """Return a sentence on the champion after the judgement was applied."""
    champion = judgement.state.champion if promotion.waiting(recipe, judgement) else judgement.champion
    if champion is None:
        return f"{recipe.registered_model} has no champion."
    return f"Version {champion.version} of {recipe.registered_model} ({champion.candidate}) is champion."


@contextmanager
def mlflow_run(recipe: Recipe, needed: bool) -> Iterator[dict[str, str]]:
    """Keep an MLflow run open as the parent of this flow's trainings.

    Yields the environment variables that the trainings need to find it.
    """
    if not needed:
        yield {}
        return
    flow_id = str(flow_run.id)
    parent = runs.parent_run(recipe, flow_id)
    variables = {"MOBILENET_PIPELINE_PARENT_RUN": parent, "PREFECT__FLOW_RUN_ID": flow_id}
    try:
        yield variables
    except BaseException as error:
        # Ctrl-C and Prefect's signals raise a BaseException, not an Exception.
        runs.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    runs.end_run(parent)


@contextmanager
def shown(step: str) -> Iterator[Callable[[str], None]]:
    """Tell the listener that the step starts, and its outcome.

    Yields a function that sets the outcome; it is "ran" by default, and "failed" if the body raises.
    """
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
