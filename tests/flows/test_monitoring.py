"""The monitoring's flow on a real Prefect server, and the whole way from a served answer to a training."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bento_fixtures import CLASSES
from prefect.states import Completed
from toy_fixtures import Toy
from waiting import ran, wait_until

from flows import monitoring
from flows.training import train_and_promote
from mobilenet_pipeline import cli
from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.evaluation.reference import describe
from mobilenet_pipeline.inference.artefact import Artefact
from mobilenet_pipeline.monitoring import look
from mobilenet_pipeline.monitoring.alarms import Alert, State
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.workspace import locks

CHAMPION = Version("cifar10-mobilenet", "2", "2" * 32, "scratch", "digits", 0.9, "d" * 64, "0" * 64)
ALERT = Alert("2-images-900", "images", "2", 900.0, ["short"], {"brightness": "brightness is 180"})
IMAGES = 240


def pixels(brighter: int = 0) -> np.ndarray:
    """Return images of different brightness."""
    rng = np.random.default_rng(0)
    light = rng.normal(110, 25, (IMAGES, 1, 1, 3)) + rng.normal(0, 10, (IMAGES, 32, 32, 3)) + brighter
    return light.clip(0, 255).astype(np.uint8)


@pytest.fixture
def served(
    filled_bento_store: Path,
    served_versions: list[Path],
    start: Any,
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[[], Path]:
    """A workspace that records a service's answers: half of the images are as in the test set, half are brighter."""
    workspace = toy(sleep={"ingest": 300})
    record = workspace / "record"
    with start(filled_bento_store, SERVING_RECORD=str(record)) as service:
        for part in (pixels(), pixels(brighter=80)):
            headers = {"Content-Type": "application/octet-stream"}
            assert service.ask("POST", "/predict_batch", content=part.tobytes(), headers=headers).status_code == 200
    probabilities = Artefact(served_versions[1] / "model.tflite").predict(pixels())
    known = describe(pixels(), np.arange(IMAGES), probabilities, CLASSES)
    # What the registry holds has tests of its own.
    monkeypatch.setattr(look.aliases, "with_alias", lambda *_: CHAMPION)
    monkeypatch.setattr(look.reference, "find", lambda *_: known)
    monkeypatch.setenv("SERVING_RECORD", str(record))
    spread_over_two_hours(record / "answers-1.jsonl")
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("retrain: false", "retrain: true", 1))
    return workspace


def spread_over_two_hours(path: Path) -> None:
    """Give the answers times as if they had been asked for during the two hours before the last quarter of an hour."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    end = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 900 * 900, UTC)
    step = timedelta(hours=2) / len(lines)
    for number, line in enumerate(lines):
        line["at"] = (end - (len(lines) - number) * step).isoformat()
    path.write_text("\n".join(json.dumps(line) for line in lines))


def events_of(prefect: Any, workspace: Path) -> list[dict[str, Any]]:
    """Return the workspace's events, the oldest first; the server has those of other tests, too."""
    only = {"filter": {"event": {"prefix": ["mobilenet-pipeline."]}, "order": "ASC"}}
    events = prefect.request("POST", "/events/filter", json=only).json()["events"]
    return [event for event in events if event["payload"].get("picture", "").startswith(f"{workspace}/")]


def test_a_shift_of_served_images_raises_an_alert_and_starts_a_training(served: Path, prefect: Any) -> None:
    first = monitoring.monitor("digits", return_state=True)
    second = monitoring.monitor("digits", return_state=True)
    document = first.result()
    (alert,) = [alert for alert in document["drift"] if alert["cause"] == "images"]
    assert "brightness" in alert["tests"]
    assert first.message.startswith("Drift of images since ")
    # It has a process of its own, which runs the recipe from its first stage on.
    process = int(alert["training"].split()[1].rstrip(","))
    try:
        wait_until(
            lambda: ran(served) == ["ingest@digits"], (served / "reports/digits/monitoring/training.log").read_text
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    assert [one["cause"] for one in second.result()["drift"]] == [one["cause"] for one in document["drift"]]
    wait_until(lambda: any(event["event"] == monitoring.REQUESTED for event in events_of(prefect, served)))
    events = events_of(prefect, served)
    told = [(event["event"], event["payload"]["cause"]) for event in events]
    assert told.count((monitoring.EVENTS["raised"], "images")) == told.count((monitoring.REQUESTED, "images")) == 1
    raised = next(event for event in events if event["event"] == monitoring.EVENTS["raised"])
    assert raised["resource"]["prefect.resource.id"] == "mobilenet-pipeline.recipe.digits"
    only = {"artifacts": {"key": {"any_": ["digits-monitoring"]}}}
    assert "data:image/png;base64," in prefect.request("POST", "/artifacts/filter", json=only).json()[0]["data"]


def test_a_proposal_is_an_event_of_the_look_that_brings_it(
    workspace: Path, prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"answers": 9, "from": "", "damaged_lines": 0}
    empty = {"windows": {}, "drift": [], "labels": None, "accuracy": None}
    common = {
        "recipe": "digits",
        "version": "2",
        "at": look.iso(0),
        "record": record,
        "proposal": "It is worse",
    } | empty
    change = {"what": "proposed", "id": "accuracy", "cause": "accuracy", "version": "2", "sentence": "It is worse"}
    for changes in ([change], []):
        seen = look.Look(load_recipe("digits"), 0.0, State("2"), common | {"changes": changes}, b"", [])
        monkeypatch.setattr(look, "look", lambda *_, _seen=seen: _seen)
        assert monitoring.monitor("digits", return_state=True).message.endswith("It is worse.")

    def proposals() -> list[str]:
        proposed = monitoring.EVENTS["proposed"]
        return [one["payload"]["sentence"] for one in events_of(prefect, workspace) if one["event"] == proposed]

    assert wait_until(proposals) == ["It is worse"]


def test_an_expected_error_is_a_failed_look_without_a_traceback(
    workspace: Path, prefect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise look.MonitoringError("there is no champion")

    monkeypatch.setattr(look, "look", fail)
    state = monitoring.monitor("digits", return_state=True)
    assert (state.name, state.message) == ("Failed", "there is no champion")
    assert "Traceback" not in caplog.text
    with pytest.raises(look.MonitoringError):
        state.result()


def test_no_training_starts_beside_a_run(workspace: Path) -> None:
    recipe = load_recipe("digits")
    with locks.only_run(recipe):
        assert monitoring.start_training(recipe, [ALERT]) is None


def test_a_served_deployment_runs_the_training_once(
    workspace: Path, prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "_is_served", lambda _: True)
    deployment = prefect.create_deployment(prefect.create_flow_from_name(train_and_promote.name), "digits")
    sentences = {monitoring.start_training(load_recipe("digits"), [ALERT]) for _ in range(2)}
    (run,) = prefect.request(
        "POST", "/flow_runs/filter", json={"deployments": {"id": {"any_": [str(deployment)]}}}
    ).json()
    prefect.delete_deployment(deployment)
    assert run["parameters"] == {"recipe": "digits", "force": True}
    assert sentences == {f"flow run {run['name']} of train-and-promote/digits"}


def test_a_deployment_that_nothing_serves_gets_no_run(prefect: Any) -> None:
    deployment = prefect.create_deployment(prefect.create_flow_from_name(train_and_promote.name), "digits")
    served = monitoring._is_served(f"{train_and_promote.name}/digits")
    prefect.delete_deployment(deployment)
    assert not served


def test_a_deployment_that_nothing_has_polled_for_two_minutes_is_not_served(
    prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = prefect.create_deployment(prefect.create_flow_from_name(train_and_promote.name), "digits")
    name = f"{train_and_promote.name}/digits"
    prefect.get_scheduled_flow_runs_for_deployments([deployment])
    wait_until(lambda: monitoring._is_served(name))
    polled = prefect.read_deployment_by_name(name).last_polled

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return polled + timedelta(seconds=121)

    monkeypatch.setattr(monitoring, "datetime", Later)
    served = monitoring._is_served(name)
    prefect.delete_deployment(deployment)
    assert not served


@pytest.mark.parametrize(("drift", "proposal", "code"), [([], None, 0), (["images"], None, 3), ([], "Consider", 3)])
def test_the_command_says_with_its_exit_code_whether_people_are_needed(
    workspace: Path, prefect: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, drift: Any, proposal: Any, code: int
) -> None:
    document = {"drift": drift, "proposal": proposal}
    monkeypatch.setattr(monitoring, "monitor", lambda *_, return_state: Completed(data=document))
    assert cli.main(["monitor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == document


def test_a_look_beside_one_that_hangs_ends_with_a_sentence(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOK_SECONDS", 0.1)
    with locks.only_look(load_recipe("digits")):
        state = monitoring.monitor.fn("digits")
    assert state.is_failed()
    assert state.message.startswith("another look at digits has been in progress for 0.1 s")


def test_a_look_that_fails_does_not_end_the_monitoring(
    workspace: Path, prefect: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    looks = iter([RuntimeError("Failed to reach API"), KeyboardInterrupt()])

    def fail(*_: Any, **__: Any) -> None:
        raise next(looks)

    monkeypatch.setattr(monitoring, "monitor", fail)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert cli.main(["monitor", "--every", "1"]) == 130
    assert "Failed to reach API" in capsys.readouterr().err
