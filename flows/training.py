"""The pipeline as a Prefect flow: the order of steps, retries, and one run per recipe at a time."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from flows import alerts, artifacts, logs, others
from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import Recipe, load_recipe, recipe_names
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.registry import away, runs
from mobilenet_pipeline.registry.aliases import ChampionChanged
from mobilenet_pipeline.registry.store import StoreError
from mobilenet_pipeline.registry.versions import find_run, tags_of_run
from mobilenet_pipeline.release import judging, offline, promotion, unchanged
from mobilenet_pipeline.release.judging import Judgement
from mobilenet_pipeline.reports import costs, gauges, page, results
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.stages.jobs import number_of_jobs, side_by_side
from mobilenet_pipeline.system import environment, failures, process
from mobilenet_pipeline.workspace import locks, paths
from mobilenet_pipeline.workspace.files import read_json

Work = TypeVar("Work", bound=Callable[..., Any])

RETRY_SECONDS: list[float] = [10, 60]
"""Delays before the second and the third try of a stage that may succeed on another try."""

TRIES = 3
"""How often a run tries to promote if other runs change the champion. Then it fails, and the next run decides."""


PARENT_RUN = "MOBILENET_PIPELINE_PARENT_RUN"
"""The variable by which a training finds the MLflow run of its flow."""
GPU_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
"""TensorFlow's variable that lets a process take a GPU's memory as it needs it; otherwise the first takes all."""


# DVC's messages around a stage, which only users of DVC itself need.
CHATTER = (
    *("Running stage", "> ", "Updating lock file", "Generating lock file", "Use `dvc push`", "Data and pipelines"),
    *("Stage '", "To track the changes", "To enable auto staging", "\tgit add", "\tdvc config", "Verifying "),
)


class Listener(Protocol):
    """A display in the process of the run; flows.display.Display is one."""

    def begin(self, step: str) -> None:
        """Show that a step starts."""

    def hear(self, step: str, line: str) -> None:
        """Show a line of the step; DVC's own lines are left out."""

    def end(self, step: str, outcome: str) -> None:
        """Show the outcome: "ran", "restored", "unchanged" or "failed"."""


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class RecipeName(str):
    """A recipe's name. Prefect's form offers the recipes that params.yaml has when the flow is deployed."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of any text; `load_recipe` refuses unknown names in a sentence."""
        return handler.generate_schema(str)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema with the recipes as choices."""
        return {**handler(schema), "enum": recipe_names()}


def in_a_sentence(work: Work) -> Work:
    """Let an expected error of a flow or task end it as failed, with a sentence.

    If the error were raised, Prefect would log its traceback. The state's `result` raises it.
    """

    @wraps(work)
    def run(*words: Any, **options: Any) -> Any:
        try:
            return work(*words, **options)
        except Exception as error:
            failure = away.translated(error) or error
            sentence = failures.explain(failure, runner.EXPECTED)
            if sentence is None:
                raise
            return Failed(message=sentence, data=failure)

    return cast(Work, run)


def step(work: Work) -> Work:
    """Make a task of a step that runs in this process; its errors are raised."""
    made = task(cache_policy=NO_CACHE, persist_result=False)(in_a_sentence(work))

    @wraps(work)
    def call(*words: Any) -> Any:
        state: Any = made(*words, return_state=True)
        return state.result()

    return cast(Work, call)


@flow(name=others.FLOW, persist_result=True, result_serializer="json")
@in_a_sentence
def train_and_promote(
    recipe: str = "digits", force: bool = False, jobs: int | None = None, cluster: str | None = None
) -> State:
    """Bring all stages up to date, judge the candidates, and promote the winner.

    The winner is promoted only if it passes every check. The result is `outcome_of` as a dictionary. The final state's
    message is one sentence with the result.

    Args:
        recipe: The section of params.yaml to run.
        force: Run the stages even if nothing changed.
        jobs: How many stages may run at the same time; without it, the number in MOBILENET_PIPELINE_JOBS, else 1 or
            2; on a cluster other than local, all.
        cluster: The Ray cluster of the trainings: auto, ray://HOST:10001 or local; without it, the address in
            MOBILENET_PIPELINE_CLUSTER, else they run on this machine.
    """
    environment.prepare()
    logs.set_up(recipe)
    loaded, own, address = load_recipe(recipe), UUID(str(flow_run.id)), setting.address(cluster)
    jobs = number_of_jobs(loaded, jobs, address)
    # Without the lock: the newer run, which starts at the same time, would take this one for a run in progress.
    late = others.give_way(own)
    with nullcontext(late) if late else locks.only_run(loaded) as reason:
        if not reason:
            others.close_dead(recipe, alone=True, own=own)
            reason = others.take_turn(own)
        message = f"Skipped: {reason}" if reason else run_and_note(loaded, force, jobs, address)
        # Keep the name "Completed": automations that detect crashed runs know no other name.
        return Completed(message=message, data=outcome_of(loaded, message, skipped=reason is not None))


# Prefect makes a schema when it decorates, and importing reads no file. Deploying makes it again, with the choices.
train_and_promote.fn.__annotations__["recipe"] = RecipeName


def outcome_of(recipe: Recipe, message: str, skipped: bool) -> dict[str, Any]:
    """Return the flow's result: JSON for programs that start runs.

    `verdict` is the gate's reason, `champion` the champion's version, `report` a path. They are None after a run that
    was skipped.
    """
    document = {} if skipped else read_json(results.results_path(recipe))
    return {
        "recipe": recipe.name,
        "skipped": skipped,
        "message": message,
        "verdict": document.get("verdict_reason"),
        "champion": document.get("champion"),
        "report": None if skipped else str((paths.report_folder(recipe) / "index.html").resolve()),
    }


def run_and_note(recipe: Recipe, force: bool, jobs: int = 1, cluster: str | None = None) -> str:
    """Run the pipeline, and note in the gauges whether it succeeded; return its summary.

    A run that a person or Prefect ends has done neither.
    """
    began = time.monotonic()

    def note(outcome: gauges.Outcome) -> None:
        alerts.write_gauges(lambda: gauges.note_run(recipe, outcome, time.monotonic() - began))

    try:
        message = run_pipeline(recipe, force, jobs, cluster)
    except Exception:
        note("failed")
        raise
    note("succeeded")
    return message


def run_pipeline(recipe: Recipe, force: bool, jobs: int = 1, cluster: str | None = None) -> str:
    """Bring the stages up to date, at most `jobs` at a time, release the winner, and return a summary.

    Trainings run on the Ray cluster at the address `cluster`; None is this machine.
    """
    warn, price = get_run_logger().warning, costs.price_per_hour()
    away.patiently(lambda: check_ready(recipe), warn)
    names = runner.stage_names(recipe)
    stale = dict.fromkeys(names, "") if force else runner.stale(names)
    # Stages before the first stale stage cannot become stale.
    fresh = next((index for index, name in enumerate(names) if name in stale), len(names))
    done = [runner.StageResult(name, "unchanged", 0.0, 0.0) for name in names[:fresh]]
    data, trainings = runner.data_stages(recipe), runner.train_stages(recipe)

    def note(result: runner.StageResult) -> None:
        costs.note(recipe, asdict(result), price)

    def bring_up_to_date(name: str, variables: Mapping[str, str]) -> runner.StageResult:
        result = stage(name, variables, force, stale.get(name))
        note(result)
        return result

    def bring_up_to_date_together(names: list[str], variables: Mapping[str, str]) -> list[runner.StageResult]:
        order = runner.predecessors(recipe, evaluate_alone=cluster is None)
        order = {name: [each for each in order[name] if each in names] for name in names}
        shared = {**variables, GPU_GROWTH: os.environ.get(GPU_GROWTH, "true")}
        results = side_by_side(
            order, jobs, lambda name: stage_beside_others.submit(name, shared, force, stale.get(name)), note
        )
        return [results[name] for name in names]

    done += [bring_up_to_date(name, {}) for name in names[fresh:] if name in data]
    if len(done) > fresh and not force:
        stale |= runner.stale(trainings)
    trains = any(name in stale for name in trainings)
    with mlflow_run(recipe, needed=trains) as variables:
        variables |= {setting.CLUSTER: cluster} if cluster else {}
        left = names[len(done) :]
        if jobs > 1:
            done += bring_up_to_date_together(left, variables)
        else:
            done += [bring_up_to_date(name, variables) for name in left]
        return away.patiently(lambda: release(recipe, done, variables.get(PARENT_RUN)), warn)


def check_ready(recipe: Recipe) -> None:
    """Check what the run needs at its end, and end the MLflow runs that killed runs have left active."""
    promotion.check_ready(recipe)
    runs.close_dead(recipe, others.is_over)


def release(recipe: Recipe, stages: list[runner.StageResult], mlflow_run_id: str | None = None) -> str:
    """Judge the candidates, apply the verdict, report it, share the outputs, and return a summary.

    The MLflow run of this flow gets the verdict and the champion's metrics.
    """
    summary, judgement = decide(recipe, stages, mlflow_run_id)
    # Outside the lock of decisions: a push may take minutes.
    return " ".join([summary, *promotion.share(recipe, judgement)])


def decide(recipe: Recipe, stages: list[runner.StageResult], mlflow_run_id: str | None) -> tuple[str, Judgement]:
    """Judge the candidates, apply the verdict and report it; return a summary and the judgement."""
    with locks.deciding(recipe):
        restored = "".join(f" {it}" for it in [*offline.replay(recipe), *promotion.reconcile(recipe)])
        known = judging.recall(recipe)
        applied = known is not None and promotion.is_applied(recipe, known)
        if known and applied and results.reported(recipe) and not any(result.changed for result in stages):
            return f"{unchanged.sentence(recipe, known)}{restored}", known
        judgement: Judgement = known or judge(recipe)
        if not applied:
            judgement = apply(recipe, judgement)
        waiting = promotion.waiting(recipe, judgement)
        verdict = judgement.verdict.model_copy(update={"leaves": promotion.aliases_after(recipe, judgement)})
        report(recipe, verdict, [{**asdict(result), "changed": result.changed} for result in stages])
        if waiting:
            alerts.tell_approval(recipe.name, waiting.version, waiting.run_id, verdict.reason)
        conclude(recipe, judgement, mlflow_run_id)
    opening = "The candidates and the verdict have not changed: " if known else ""
    request = (
        f" It waits for approval: mobilenet-pipeline approve {waiting.version} --recipe {recipe.name}, or reject."
        if waiting
        else ""
    )
    return f"{opening}{verdict.reason}{request} {promotion.champion_sentence(recipe, judgement)}{restored}", judgement


def conclude(recipe: Recipe, judgement: Judgement, mlflow_run_id: str | None) -> None:
    """Log verdict, costs and the champion's metrics on today's test images to the MLflow run of this flow.

    A flow that trained nothing has no run; then the run of the last training's flow, which may have been killed, gets
    them.
    """
    run_id = mlflow_run_id or parent_of_last_training(recipe)
    if run_id is None:
        return
    verdict, waits = judgement.verdict, promotion.waiting(recipe, judgement)
    champion = judgement.state.champion if waits else judgement.champion
    tags = {"champion": champion.version, "champion_candidate": champion.candidate} if champion else {}
    rows = read_json(results.results_path(recipe))["stages"]
    if currency := costs.total(rows).get("currency"):
        tags["currency"] = currency
    standing = verdict.candidates[verdict.winner] if verdict.promote and verdict.winner and not waits else None
    scores = standing or verdict.champion
    runs.conclude(
        run_id,
        "waits for approval" if waits else "promoted" if verdict.promote else "rejected",
        f"{verdict.reason} {promotion.champion_sentence(recipe, judgement)}",
        tags,
        costs.metrics(recipe, rows) | ({"test/accuracy": scores.accuracy, "test/loss": scores.loss} if scores else {}),
    )


def parent_of_last_training(recipe: Recipe) -> str | None:
    """Return the id of the MLflow run of the flow that trained last, None if no flow did or MLflow lacks that run."""
    trainings = [read_json(paths.model_folder(recipe, name) / "training.json") for name in recipe.candidates]
    last = max(trainings, key=lambda training: str(training.get("trained_at")))
    parent = tags_of_run(str(last["run_id"])).get("mlflow.parentRunId")
    return parent if parent and find_run(parent) else None


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
    persist_result=False,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=may_pass_again,
)
def stage(name: str, variables: Mapping[str, str], force: bool, reason: str | None = None) -> runner.StageResult:
    """Run one DVC stage in its own process, and return its result.

    `reason` says why its outputs were outdated at the start of the run.
    """
    log, watcher, follow = get_run_logger(), listener.get(), artifacts.follow_epochs(name)

    def on_line(line: str) -> None:
        if not line.strip() or line.startswith(CHATTER):
            return
        log.info(line)
        follow(line)
        if watcher:
            watcher.hear(name, line)

    with shown(name) as tell:
        if reason:
            on_line(f"{name} is outdated: {reason}")
        result = runner.run_stage(name, on_line, variables, force)
        tell(result.outcome)
    return result


def may_pass_after_a_pause(task: Any, run: TaskRun, state: State) -> bool:
    """Wait as long as a retry should, and return whether Prefect should retry; the end of the run ends the pause.

    Prefect's own pause cannot be ended in a thread beside the main thread.
    """
    children = process.group.get() or process.Group()
    return may_pass_again(task, run, state) and not children.ended.wait(RETRY_SECONDS[run.run_count - 1])


stage_beside_others = stage.with_options(retry_delay_seconds=0, retry_condition_fn=may_pass_after_a_pause)
"""The task of a stage that runs at the same time as others, in a thread of its own."""


@step
def judge(recipe: Recipe) -> Judgement:
    """Compare the candidates with each other and the champion, and register them."""
    with shown("judge"):
        judgement = judging.judge(recipe)
    get_run_logger().info(judgement.verdict.reason)
    return judgement


@step
def promote(recipe: Recipe, judgement: Judgement) -> str | None:
    """Build and check the Bento, move the aliases, and return the Bento's tag."""
    with shown("promote"):
        return promotion.promote(recipe, judgement)


@step
def report(recipe: Recipe, verdict: Verdict, stages: list[dict[str, Any]]) -> None:
    """Write results.json and the report, and show both in Prefect."""
    with shown("report"):
        path = results.write_results(recipe, verdict, stages)
        report_page = page.write_report(recipe, Path("."))
        artifacts.publish(recipe, read_json(path), verdict, report_page)


@contextmanager
def mlflow_run(recipe: Recipe, needed: bool) -> Iterator[dict[str, str]]:
    """Keep an MLflow run open as the parent of this flow's trainings.

    Yields the environment variables that the trainings need to find it.
    """
    if not needed:
        yield {}
        return
    flow_id, warn = str(flow_run.id), get_run_logger().warning
    document = read_json(paths.data_folder(recipe) / "dataset.json")
    parent = away.patiently(lambda: runs.parent_run(recipe, document, flow_id), warn)
    variables = {PARENT_RUN: parent, "PREFECT__FLOW_RUN_ID": flow_id}
    try:
        yield variables
    except BaseException as error:
        # Ctrl-C and Prefect's signals raise a BaseException, not an Exception.
        try:
            with away.answering():
                runs.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        except StoreError as second:
            warn(f"the MLflow run {parent} stays active until the next run: {second}")
        raise
    away.patiently(lambda: runs.end_run(parent), warn)


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
