"""Serve the training flow on a schedule from this machine, and prepare a server for deployments."""

import asyncio
import os
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.schedules import Cron, Schedule
from prefect.server.schemas.schedules import CronSchedule
from ruamel.yaml import YAML

from flows import others
from flows.training import train_and_promote
from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.system import process
from mobilenet_pipeline.workspace import locks

_DAYS = 2 * 366
"""How many days ahead a schedule is checked against changes of the clocks."""
CRASHED = "mobilenet-pipeline: a flow run whose process is gone has crashed"


def keep_schedule(recipe: str, cron: str, timezone: str) -> None:
    """Run `serve` in a child process until this process is interrupted.

    An active run ends with this process. Prefect's own runner would wait for its run after SIGTERM, and leave it
    behind after SIGKILL. Raises ChildProcessError if the child ends by itself.
    """
    command = [sys.executable, "-P", "-m", "flows.deployments", recipe, cron, timezone]
    with process.leashed(command, grace=setting.grace(os.environ)) as child:
        while not child.ended:
            time.sleep(0.5)
    raise ChildProcessError(f"the schedule of {recipe} has ended with exit code {child.returncode}")


def check(cron: str, timezone: str) -> Schedule:
    """Return the schedule. Raises ValueError for a bad cron expression or time zone, or if no date matches."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a part of a name is a folder of the database
        raise ValueError(f"unknown time zone {timezone!r}; use an IANA name such as Europe/Berlin or UTC") from None
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ValueError(
            f"invalid cron expression {cron!r}; use a form such as 0 3 * * * (every night at three)"
        ) from None
    try:
        next_times(cron, timezone, 1)
    except ValueError:
        raise ValueError(f"{cron!r} never comes; correct its day or month") from None
    return Cron(cron, timezone=timezone)


def next_times(cron: str, timezone: str, count: int = 3, start: datetime | None = None) -> list[datetime]:
    """Return the next times at which Prefect's scheduler starts a run, in the time zone."""
    return _times(cron, timezone, start or datetime.now(UTC), count)


def warnings_of(cron: str, timezone: str, now: datetime | None = None) -> list[str]:
    """Return sentences on the next time of the expression that clocks skip, and the next that they show twice.

    Prefect 3.8 runs `30 2 * * *` in Europe/Berlin at 01:30 on the day on which clocks go from 02:00 to 03:00, and once
    on the day on which they go back. The changes of two years are looked at.
    """
    sentences: dict[str, str] = {}
    for moment, gain in _clock_changes(timezone, now or datetime.now(UTC)):
        change, length = "skip" if gain > timedelta() else "show twice", abs(gain)
        if change in sentences:
            continue
        # The first time that does not exist, or that comes twice, as the clock shows it.
        after = moment.astimezone(ZoneInfo(timezone)).replace(tzinfo=UTC)
        start = after - length if change == "skip" else after
        named = _times(cron, "UTC", start, end=start + length - timedelta(seconds=1))
        runs = [
            time
            for time in _times(cron, timezone, moment - length, end=moment + length - timedelta(seconds=1))
            if time.replace(tzinfo=UTC) in named or not _matches(cron, time)
        ]
        if named and runs:
            only = " only" if change == "show twice" else ""
            sentences[change] = (
                f"{cron!r} means {named[0]:%H:%M} on {start:%Y-%m-%d}, which the clocks of {timezone} {change}: "
                f"Prefect runs it at {runs[0]:%H:%M %Z}{only}; "
                f"choose a time outside {start:%H:%M} to {start + length:%H:%M}"
            )
    return list(sentences.values())


def _times(
    cron: str, timezone: str, start: datetime, count: int | None = None, end: datetime | None = None
) -> list[datetime]:
    """Return the times of Prefect's scheduler from `start` on, in the time zone."""
    times = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(count, start=start, end=end))
    return [time.astimezone(ZoneInfo(timezone)) for time in times]


def _clock_changes(timezone: str, now: datetime) -> Iterator[tuple[datetime, timedelta]]:
    """Yield the moments, in UTC, at which clocks change, and by how much they go forward."""
    zone, day, half_hour = ZoneInfo(timezone), timedelta(days=1), timedelta(minutes=30)

    def gain(moment: datetime, step: timedelta) -> timedelta:
        before, after = ((moment + each).astimezone(zone).utcoffset() or timedelta() for each in (timedelta(), step))
        return after - before

    first = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for start in (first + number * day for number in range(_DAYS)):
        if gain(start, day):
            change = next(each for number in range(48) if gain(each := start + number * half_hour, half_hour))
            yield change + half_hour, gain(change, half_hour)


def _matches(cron: str, time: datetime) -> bool:
    """Return whether the expression names this time of the clock."""
    named = time.replace(tzinfo=UTC)
    return _times(cron, "UTC", named, 1) == [named]


def serve(recipe: str, cron: str, timezone: str) -> None:
    """Run the recipe's pipeline at the times of `cron`, until this process ends.

    It needs a Prefect server. Only one run is active at a time: this process starts no second one, and the flow ends at
    once if another run of the recipe is active.
    """
    schedule = check(cron, timezone)
    watch_for_crashes()
    with locks.only_run(load_recipe(recipe)) as in_progress:
        others.close_dead(recipe, alone=in_progress is None)
    train_and_promote.serve(
        name=recipe,
        schedule=schedule,
        parameters={"recipe": recipe},
        tags=[recipe],
        limit=1,
        # A path would depend on the current directory of the process that runs the flow.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def prepare_server() -> None:
    """Prepare the server for the deployments of prefect.yaml, as its build step.

    Runs whose process is gone are marked as crashed, now and later. Prints a warning for times that clocks skip.
    """
    watch_for_crashes()
    for deployment in YAML(typ="safe").load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]:
        for name in others.close_dead(deployment["name"], alone=False):
            print(f"{name} has crashed: its process is gone")
        for each in deployment.get("schedules", []):
            for sentence in warnings_of(each["cron"], each.get("timezone", "UTC")):
                print(f"warning: {deployment['name']}: {sentence}")


def watch_for_crashes() -> None:
    """Let the server mark runs without a heartbeat as crashed.

    Otherwise they would stay Running until the next run.
    """
    within = others.silence()
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(CRASHED):
            if isinstance(automation.trigger, EventTrigger) and automation.trigger.within == within:
                return
            client.delete_automation(automation.id)
    Automation(
        name=CRASHED,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={others.HEARTBEAT},
            expect={"prefect.flow-run.*"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=others.GONE, force=False)],
    ).create()


if __name__ == "__main__":
    # Prefect 3.8 stops its runner with a coroutine that it does not await; its shutdown goes on all the same.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    serve(*sys.argv[1:])
