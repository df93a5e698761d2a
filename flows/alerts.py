"""Tell people: automations of Prefect that send a notification when a run fails or a person has to decide."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from prefect import get_client, get_run_logger
from prefect.automations import Automation
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SendgridEmail, SlackWebhook
from prefect.events import emit_event
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

from flows import others

PREFIX = "mobilenet-pipeline: "
NAME = "mobilenet-pipeline"
"""The name of the blocks that this module makes and `set_up` saves."""
FLOWS = [others.FLOW, "monitor"]
APPROVAL = "mobilenet-pipeline.approval.requested"
DRIFT, PROPOSAL = "mobilenet-pipeline.drift.raised", "mobilenet-pipeline.rollback.proposed"
OF = "mobilenet-pipeline.cause"
"""The label of an event's resource that has the cause of drift."""
RUNBOOK = "docs/runbook"


@dataclass(frozen=True)
class Cause:
    """What people are told of: the event, the page of the runbook, and the sentence as a template of Prefect.

    `of` are the causes of drift that the page is about, as the event's resource names them.
    """

    event: str
    page: str
    sentence: str
    of: tuple[str, ...] = ()


_DRIFT = "{{ event.payload.recipe }}: {{ event.payload.sentence }}"
_OF_RUN = "{{ flow.name }} of {{ flow_run.parameters.recipe }}, run {{ flow_run.name }}"
CAUSES = {
    "a run has failed": Cause(
        "prefect.flow-run.Failed", "run-failed", f"{_OF_RUN}, has failed: {{{{ flow_run.state.message }}}}"
    ),
    "a run has crashed": Cause(
        "prefect.flow-run.Crashed", "run-crashed", f"{_OF_RUN}, has crashed: {{{{ flow_run.state.message }}}}"
    ),
    "a run is late": Cause("prefect.flow-run.Late", "run-late", f"{_OF_RUN}, is late: no worker has started it."),
    "a version waits for approval": Cause(APPROVAL, "waiting-for-approval", "{{ event.payload.sentence }}"),
    "a rollback is proposed": Cause(PROPOSAL, "rollback-proposed", "{{ event.payload.sentence }}"),
    "pictures have drifted": Cause(
        DRIFT, "drift", f"Drift of {{{{ event.payload.cause }}}} in {_DRIFT}", ("images", "classes", "confidence")
    ),
    "answers are slow": Cause(DRIFT, "slow", _DRIFT, ("latency",)),
    "requests fail": Cause(DRIFT, "errors", _DRIFT, ("errors",)),
    "uploads are refused": Cause(DRIFT, "refusals", _DRIFT, ("refusals",)),
}
"""By name of the automation."""


def webhook(url: str) -> Block:
    """Return a block that posts subject and body as JSON to an address.

    The address is a secret of the block: whoever has that of most webhooks can send by them. Raises ValueError if it is
    no address.
    """
    _check(url)
    content = {"subject": "{{subject}}", "text": "{{body}}"}
    settings = {"name": NAME, "url": "{{url}}", "secrets": {"url": url}, "json_data": content}
    return CustomWebhookNotificationBlock.model_validate(settings)


def slack(url: str) -> Block:
    """Return a block for an incoming webhook of Slack. Raises ValueError if it is no address."""
    _check(url)
    return SlackWebhook(url=SecretStr(url))


def _check(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a webhook; give one such as https://hooks.example.com/PATH")


def email(address: str, key: str) -> Block:
    """Return a block that sends e-mail from and to an address by SendGrid, with SendGrid's API key.

    Raises ValueError if it is no address.
    """
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", address):
        raise ValueError(f"{address!r} is no e-mail address; give one such as team@example.com")
    return SendgridEmail(api_key=SecretStr(key), sender_email=address, to_emails=[address])


def load(name: str) -> Block:
    """Return the block TYPE/NAME of the server. Raises ValueError if it cannot send notifications or does not exist."""
    try:
        block: Any = Block.load(name)
    except ValueError as error:
        raise ValueError(f"block {name!r}: {' '.join(str(error).split())}; `prefect block ls` has the names") from None
    if "notify" not in block.get_block_capabilities():
        raise ValueError(f"block {name!r} sends no notifications; give one of a type such as slack-webhook")
    return block


def write_gauges(write: Callable[[], object]) -> None:
    """Write gauges of what has happened; a warning if that fails, because it has happened all the same."""
    try:
        write()
    except (OSError, ValueError) as error:
        get_run_logger().warning("the gauges were not written: %s", error)


def set_up(blocks: Sequence[Block]) -> list[str]:
    """Save new blocks, make or replace the automations of all `CAUSES`, which notify by them; return their names."""
    for block in blocks:
        if not block._block_document_id:
            block.save(NAME, overwrite=True)
    ids = [block._block_document_id for block in blocks if block._block_document_id]
    with get_client(sync_client=True) as client:
        for name, cause in CAUSES.items():
            for former in client.read_automations_by_name(PREFIX + name):
                client.delete_automation(former.id)
            subject, body = f"{NAME}: {name}", f"{cause.sentence}\n\nWhat to do: {RUNBOOK}/{cause.page}.md"
            Automation(
                name=PREFIX + name,
                trigger=_trigger(cause),
                actions=[SendNotification(block_document_id=id_, subject=subject, body=body) for id_ in ids],
            ).create()
    return [PREFIX + name for name in CAUSES]


def test(blocks: Iterable[Block]) -> None:
    """Send a message by each block, saved or not. Raises ConnectionError, naming the block, if one cannot be sent."""
    for block in blocks:
        slug = f"{block.get_block_type_slug()}/{block._block_document_name or NAME}"
        remedy = "correct the block on Prefect's page" if block._block_document_name else "correct its address or key"
        try:
            with block.raise_on_failure():  # type: ignore[attr-defined]
                block.notify(subject=f"{NAME}: a test", body="Notifications arrive here.")  # type: ignore[attr-defined]
        except Exception as error:  # each kind of block raises its own
            raise ConnectionError(f"{slug} cannot send: {error}; {remedy}") from None


def tell_approval(recipe: str, version: str, run_id: str, sentence: str) -> None:
    """Emit the event that a version waits for approval.

    People are reminded by later runs while it waits, once a day (UTC).
    """
    today = datetime.now(UTC).date()
    emit_event(
        event=APPROVAL,
        resource={"prefect.resource.id": f"mobilenet-pipeline.recipe.{recipe}", "prefect.resource.name": recipe},
        payload={"recipe": recipe, "version": version, "sentence": sentence},
        id=uuid5(NAMESPACE_URL, f"{APPROVAL}/{run_id}/{today}"),
    )


def _trigger(cause: Cause) -> EventTrigger:
    if not cause.event.startswith("prefect."):
        return EventTrigger(
            expect={cause.event},
            match=ResourceSpecification({OF: list(cause.of)} if cause.of else {}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        )
    return EventTrigger(
        expect={cause.event},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
