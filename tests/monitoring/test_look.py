"""A look: record, reference and labels to alerts, document and files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from registry_fixtures import Runs

from mobilenet_pipeline.config import Monitoring, Recipe
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.monitoring import look, state
from mobilenet_pipeline.monitoring.alarms import Alert, State
from mobilenet_pipeline.monitoring.answers import Answers, Record
from mobilenet_pipeline.monitoring.look import MonitoringError, needs_training, see, with_training
from mobilenet_pipeline.registry import reference as references
from mobilenet_pipeline.registry.aliases import with_alias

HOUR = 3600.0
NAMES = ("cat", "dog", "fish", "bird")
Answered, Recorded = Callable[..., Answers], Callable[..., Record]


@pytest.fixture
def shifted(answered: Answered, recorded: Recorded) -> Record:
    """An answer a second: an hour as the reference, then an hour of brighter images."""
    return recorded(answered(3600), answered(3600, brightness=2, start=HOUR, seed=2))


def test_a_shift_is_raised_once_within_the_hour(shifted: Record, reference: Reference, limits: Monitoring) -> None:
    state, told = State("3"), {}
    for now in np.arange(1, 9) * HOUR / 4:
        seen = see(shifted, reference, state, float(now), limits)
        state = seen.state
        told |= {(one.what, one.alert.cause): now - HOUR for one in seen.changes}
    assert told == {("raised", "images"): HOUR / 2}


def test_a_look_after_an_outage_sees_every_window(shifted: Record, reference: Reference, limits: Monitoring) -> None:
    seen = see(shifted, reference, State("3"), 2 * HOUR, limits)
    assert [window.end for window in seen.state.windows if window.scale == "short"] == [*np.arange(1, 9) * HOUR / 4]
    assert [one.alert.raised_at for one in seen.changes] == [1.5 * HOUR]


def test_answers_of_another_version_do_not_count(shifted: Record, reference: Reference, limits: Monitoring) -> None:
    assert see(shifted, reference, State("4"), 2 * HOUR, limits).state.windows == []


def test_errors_are_raised_while_every_request_fails(
    answered: Answered, recorded: Recorded, reference: Reference, limits: Monitoring
) -> None:
    failed_at = np.arange(HOUR, 2 * HOUR, 30)
    record = replace(recorded(answered(3600)), failed_at=failed_at, statuses=np.full(len(failed_at), 500))
    seen = see(record, reference, State("3"), 2 * HOUR, limits)
    assert [(one.what, one.alert.cause) for one in seen.changes] == [("raised", "errors")]


@pytest.fixture
def served(
    runs: Runs, recipe: Recipe, reference: Reference, shifted: Record, monkeypatch: pytest.MonkeyPatch
) -> Recipe:
    """A recipe with a champion whose answers are those of `shifted`, and which asks for a training."""
    runs((181, 183))
    champion = with_alias(recipe.registered_model, "champion")
    assert champion is not None
    references.put(champion, reference.to_bytes())
    shifted.answers.versions[:] = champion.version
    monkeypatch.setattr(look.answers, "read", lambda *_: shifted)
    return recipe.model_copy(update={"monitoring": recipe.monitoring.model_copy(update={"retrain": True})})


def test_a_look_writes_document_picture_and_state(served: Recipe, store: Path) -> None:
    seen = look.look(served, now=2 * HOUR)
    look.keep(seen)
    document = json.loads((store / "reports/digits/monitoring.json").read_text())
    assert document == seen.document
    assert [alert["cause"] for alert in document["drift"]] == ["images"]
    assert document["windows"]["short"]["images"] == 900
    assert (store / "reports/digits/monitoring.png").read_bytes().startswith(b"\x89PNG")
    assert look.look(served, now=2 * HOUR).document["changes"] == []


def test_drift_asks_for_one_training(served: Recipe) -> None:
    seen = look.look(served, now=2 * HOUR)
    assert needs_training(seen) == ["images"]
    begun = with_training(seen, ["images"], "process 7")
    assert needs_training(begun) == []
    assert begun.document["drift"][0]["training"] == "process 7"


def test_a_second_cause_starts_no_training_within_the_cool_down(served: Recipe) -> None:
    seen = look.look(served, now=2 * HOUR)
    former = Alert("2-classes-1", "classes", "2", 1 * HOUR, ["short"], {}, closed_at=HOUR, training="process 6")
    later = replace(seen, state=replace(seen.state, alerts=[former, *seen.state.alerts]))
    assert needs_training(later) == []
    assert needs_training(replace(later, at=25 * HOUR)) == ["images"]


def test_labels_are_kept_and_their_accuracy_reported(served: Recipe, tmp_path: Path, shifted: Record) -> None:
    truth = tmp_path / "truth.csv"
    lines = [f"{shifted.answers.ids[index]},dog" for index in range(200)]
    truth.write_text("\n".join(["answer_id,truth", *lines]))
    look.keep(look.look(served, truth, now=2 * HOUR))
    document = look.look(served, now=2 * HOUR).document
    assert document["accuracy"]["rows"] == 200
    assert "mobilenet-pipeline rollback --recipe digits" in document["proposal"]


def test_a_look_without_new_labels_writes_none(served: Recipe, tmp_path: Path, shifted: Record) -> None:
    truth, kept = tmp_path / "truth.csv", state.folder(served) / "labels.csv"
    truth.write_text(f"answer_id,truth\n{shifted.answers.ids[0]},dog\n")
    look.keep(look.look(served, truth, now=2 * HOUR))
    written = kept.stat().st_mtime_ns
    look.keep(look.look(served, now=2 * HOUR))
    assert kept.stat().st_mtime_ns == written


def test_a_proposal_is_told_when_it_begins(served: Recipe, tmp_path: Path, shifted: Record) -> None:
    ids, predicted = shifted.answers.ids[-200:], shifted.answers.predicted[-200:]
    wrong, right = ([(row + error) % 4 for row in predicted] for error in (1, 0))
    told = []
    for truths in (wrong, wrong, right, wrong):
        lines = [f"{name},{NAMES[truth]}" for name, truth in zip(ids, truths, strict=True)]
        (tmp_path / "truth.csv").write_text("\n".join(["answer_id,truth", *lines]))
        seen = look.look(served, tmp_path / "truth.csv", now=2 * HOUR)
        look.keep(seen)
        told.append([change["what"] for change in seen.document["changes"] if change["what"] == "proposed"])
    assert told == [["proposed"], [], [], ["proposed"]]


def test_without_a_champion_there_is_nothing_to_monitor(recipe: Recipe, store: Path) -> None:
    with pytest.raises(MonitoringError, match="digits-mobilenet has no champion; run `mobilenet-pipeline run"):
        look.look(recipe)
