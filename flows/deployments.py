"""Serve the training flow on a schedule from this machine."""

import sys
import time
import warnings
from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings

from flows.training import train_and_promote
from mobilenet_pipeline.system import process

ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
CRASHED = "mobilenet-pipeline: a flow run whose process is gone has crashed"


def keep_schedule(recipe: str, cron: str, timezone: str) -> None:
    """Run `serve` in a child process until this process is interrupted.

    An active run ends with this process. Prefect's own runner would wait for its run after SIGTERM, and leave it
    behind after SIGKILL. Raises ChildProcessError if the child ends by itself.
    """
    with process.leashed([sys.executable, "-P", "-m", "flows.deployments", recipe, cron, timezone]) as child:
        while not child.ended:
            time.sleep(0.5)
    raise ChildProcessError(f"the schedule of {recipe} has ended with exit code {child.returncode}")


def check(cron: str, timezone: str) -> Schedule:
    """Return the schedule. Raises ValueError for a bad cron expression or time zone."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"unknown time zone {timezone!r}; use an IANA name such as Europe/Berlin or UTC") from None
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ValueError(
            f"invalid cron expression {cron!r}; use a form such as 0 3 * * * (every night at three)"
        ) from None
    return Cron(cron, timezone=timezone)


def serve(recipe: str, cron: str, timezone: str) -> None:
    """Run the recipe's pipeline at the times of `cron`, until this process ends.

    It needs a Prefect server. Only one run is active at a time: this process starts no second one, the server refuses
    other processes' runs, and the flow ends at once if another run of the recipe is active.
    """
    schedule = check(cron, timezone)
    watch_for_crashes()
    train_and_promote.serve(
        name=recipe,
        schedule=schedule,
        parameters={"recipe": recipe},
        tags=[recipe],
        limit=1,
        global_limit=ONE_AT_A_TIME,
        # A path would depend on the current directory of the process that runs the flow.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def watch_for_crashes() -> None:
    """Let the server mark runs without a heartbeat as crashed.

    Otherwise they would stay Running.
    """
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(CRASHED):
            return
    Automation(
        name=CRASHED,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * (get_current_settings().flows.heartbeat_frequency or 180)),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message="The run's process is gone.", force=False
            )
        ],
    ).create()


if __name__ == "__main__":
    # Prefect 3.8 stops its runner with a coroutine that it does not await; its shutdown goes on all the same.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    serve(*sys.argv[1:])
