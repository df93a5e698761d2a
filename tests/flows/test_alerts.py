"""Notifications of a real Prefect server, to a webhook that listens here."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from waiting import wait_until

from flows import alerts, monitoring
from mobilenet_pipeline import cli
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.monitoring.comparisons import CAUSES

ROOT = Path(__file__).resolve().parents[2]
Sent = list[dict[str, str]]


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[str, Sent]]:
    """The address of a webhook, and what was posted to it."""
    sent: Sent = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


def arrived(sent: Sent, subject: str) -> dict[str, str]:
    """Return the message with this subject."""
    return dict(wait_until(lambda: next((one for one in sent if subject in one["subject"]), None), lambda: str(sent)))


def test_a_failed_run_is_told_with_its_reason_and_the_runbook_s_page(prefect: Any, hook: tuple[str, Sent]) -> None:
    address, sent = hook

    @flow(name="train-and-promote")
    def fails(recipe: str) -> None:
        raise OSError("the disk of Monday is full")

    alerts.set_up([alerts.webhook(address)])
    fails("digits", return_state=True)
    text = arrived(sent, "a run has failed")["text"]
    assert "train-and-promote of digits" in text
    assert "the disk of Monday is full" in text
    assert "docs/runbook/run-failed.md" in text


def test_each_cause_of_drift_is_told_with_its_own_page(workspace: Path, prefect: Any, hook: tuple[str, Sent]) -> None:
    address, sent = hook
    alerts.set_up([alerts.webhook(address)])
    for cause in CAUSES:
        alert = {"id": f"2-{cause}-900", "cause": cause, "version": "2", "sentence": f"the test of {cause}"}
        monitoring.tell(load_recipe("digits"), alerts.DRIFT, alert)

    def pages() -> dict[str, list[str]]:
        texts = {cause: [one["text"] for one in sent if f"the test of {cause}" in one["text"]] for cause in CAUSES}
        return {cause: [text.partition("What to do: ")[2] for text in found] for cause, found in texts.items()}

    wait_until(lambda: all(pages().values()), lambda: str(sent))
    drift = ["docs/runbook/drift.md"]
    assert pages() == {
        "images": drift,
        "classes": drift,
        "confidence": drift,
        "latency": ["docs/runbook/slow.md"],
        "errors": ["docs/runbook/errors.md"],
        "refusals": ["docs/runbook/refusals.md"],
    }


@pytest.mark.parametrize("cause", alerts.CAUSES.values())
def test_every_notification_has_its_page_in_the_runbook(cause: alerts.Cause) -> None:
    assert (ROOT / alerts.RUNBOOK / f"{cause.page}.md").is_file()


def test_a_version_that_waits_is_told_once_a_day(prefect: Any, hook: tuple[str, Sent]) -> None:
    address, sent = hook
    alerts.set_up([alerts.webhook(address)])
    for version in ("7", "7", "8"):
        alerts.tell_approval("digits", version, f"run of {version}", f"Version {version} has passed.")
        wait_until(lambda: any(f"Version {version} " in one["text"] for one in sent), lambda: str(sent))  # noqa: B023
    waiting = [one["text"].splitlines()[0] for one in sent if "waits" in one["subject"]]
    assert waiting == ["Version 7 has passed.", "Version 8 has passed."]


def test_prefect_s_page_does_not_show_the_address_of_a_webhook(prefect: Any) -> None:
    alerts.set_up([alerts.webhook("http://127.0.0.1:9/a-secret")])
    shown = prefect.read_block_document_by_name(alerts.NAME, "custom-webhook", include_secrets=False)
    assert "a-secret" not in str(shown.data)


def test_set_up_again_replaces_the_automations(prefect: Any, hook: tuple[str, Sent]) -> None:
    for _ in range(2):
        names = alerts.set_up([alerts.webhook(hook[0])])
    assert [len(prefect.read_automations_by_name(name)) for name in names] == [1] * len(alerts.CAUSES)


def test_a_webhook_that_does_not_answer_is_named(prefect: Any) -> None:
    with pytest.raises(ConnectionError, match=r"custom-webhook/mobilenet-pipeline cannot send.*correct its address"):
        alerts.test([alerts.webhook("http://127.0.0.1:9")])


def test_a_failed_test_leaves_the_notifications_as_they_were(
    prefect: Any, hook: tuple[str, Sent], capsys: pytest.CaptureFixture[str]
) -> None:
    alerts.set_up([alerts.webhook(hook[0])])
    assert cli.main(["alerts", "--webhook", "http://127.0.0.1:9", "--test"]) == 1
    assert "custom-webhook/mobilenet-pipeline cannot send" in capsys.readouterr().err
    alerts.test([alerts.load("custom-webhook/mobilenet-pipeline")])


def test_a_wrong_address_changes_no_other_block(prefect: Any, hook: tuple[str, Sent]) -> None:
    alerts.set_up([alerts.webhook(hook[0])])
    assert cli.main(["alerts", "--webhook", "http://127.0.0.1:9", "--slack", "nonsense"]) == 1
    alerts.test([alerts.load("custom-webhook/mobilenet-pipeline")])


def test_a_block_that_sends_nothing_is_refused(prefect: Any) -> None:
    Secret(value="x").save("not-a-hook", overwrite=True)
    with pytest.raises(ValueError, match="'secret/not-a-hook' sends no notifications"):
        alerts.load("secret/not-a-hook")


def test_an_unknown_block_is_named(prefect: Any) -> None:
    with pytest.raises(ValueError, match=r"'slack-webhook/nobody'.*`prefect block ls`"):
        alerts.load("slack-webhook/nobody")


def test_gauges_that_cannot_be_written_end_no_run(prefect: Any) -> None:
    def write() -> None:
        raise OSError("the folder is gone")

    @flow
    def done() -> str:
        alerts.write_gauges(write)
        return "all the same"

    assert done() == "all the same"


@pytest.mark.parametrize("make", [alerts.webhook, alerts.slack])
@pytest.mark.parametrize("url", ["nonsense", "hooks.example.com/x", "https:///path"])
def test_an_address_that_is_none_is_refused(make: Callable[[str], object], url: str) -> None:
    with pytest.raises(ValueError, match=f"'{url}' is no address of a webhook; give one such as https://"):
        make(url)


def test_an_address_of_mail_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match="'ann' is no e-mail address"):
        alerts.email("ann", "key")
