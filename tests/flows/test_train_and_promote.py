"""The flow, run in this process against a real Prefect server, over stages that make their outputs up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from waiting import Recorder, ran

from flows import training
from mobilenet_pipeline import pipeline, promotion, running, tracking
from mobilenet_pipeline.config import load_recipe

Toy = Callable[..., Path]
ALL = [
    *("ingest@digits", "validate@digits", "train@digits-scratch", "train@digits-pretrained"),
    *("export@digits-scratch", "evaluate@digits-scratch", "export@digits-pretrained", "evaluate@digits-pretrained"),
]


@pytest.fixture
def heard() -> Any:
    recorder = Recorder()
    token = training.listener.set(recorder)
    yield recorder
    training.listener.reset(token)


def parents() -> list[str]:
    """How MLflow's runs of flows ended, oldest first."""
    client = mlflow.MlflowClient(tracking.use_store())
    runs = client.search_runs([tracking.experiment(load_recipe("digits"))], "", order_by=["start_time"])
    return [run.info.status for run in runs if "candidate" not in run.data.tags]


def test_a_run_does_every_stage_and_says_what_came_of_it(finished: Any):
    assert ran(finished.workspace) == ALL
    assert finished.heard.ended == dict.fromkeys([*ALL, "judge", "promote", "report"], "ran")
    assert "█░ epoch 1/2 loss 0.5 accuracy 0.5 validation 0.5 0.5 0.1 s, 0:00 left" in finished.heard.lines
    assert (finished.state.name, finished.state.type.value) == ("Completed", "COMPLETED")
    assert finished.state.message.startswith(
        "Nothing is promoted: scratch classifies 50.00% of 200 test images correctly"
    )
    assert finished.state.message.endswith("digits-mobilenet has no champion.")
    assert (finished.workspace / "reports/digits/index.html").exists()


def test_a_run_shows_progress_candidates_verdict_figures_and_times(finished: Any, prefect: Any):
    shown = artifacts_of(prefect, finished.state)
    assert {*shown} == {
        *("digits-candidates", "digits-verdict", "digits-figures", "digits-stages"),
        *("train-digits-scratch-progress", "train-digits-pretrained-progress"),
    }
    assert float(shown["train-digits-scratch-progress"]) == 100
    assert json.loads(shown["digits-candidates"])[0]["test accuracy"] == "50.00%"
    assert shown["digits-verdict"].startswith("**Nothing is promoted")
    assert "data:image/png;base64," in shown["digits-figures"]
    assert [row["outcome"] for row in json.loads(shown["digits-stages"])] == ["ran"] * 8


def test_a_run_with_nothing_to_do_says_so(goes_on: Toy, prefect: Any):
    workspace = goes_on()
    state = training.train_and_promote("digits", return_state=True)
    assert state.message == "Nothing changed: no stage has anything to do. digits-mobilenet has no champion."
    assert ran(workspace) == []
    assert parents() == ["FINISHED"]


def test_a_forced_run_does_every_stage_and_judges_only_new_candidates(
    goes_on: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch
):
    goes_on()
    forced: dict[str, bool] = {}

    def pretend(name: str, on_line: Any, variables: Any, force: bool) -> pipeline.StageResult:
        forced[name] = force
        return pipeline.StageResult(name, "ran", 1.0, 1.0)

    monkeypatch.setattr(pipeline, "run_stage", pretend)
    state = training.train_and_promote("digits", force=True, return_state=True)
    assert forced == dict.fromkeys(ALL, True)
    assert state.message.startswith("The candidates are the same as before, and so is the verdict: Nothing is")


def artifacts_of(prefect: Any, state: Any) -> dict[str, Any]:
    """{key: data} of everything that the run shows."""
    only = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    return {found["key"]: found["data"] for found in prefect.request("POST", "/artifacts/filter", json=only).json()}


def test_a_download_that_failed_is_tried_again_and_wrong_data_are_not(
    toy: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training.stage, "retry_delay_seconds", [0.0, 0.0])
    workspace = toy(exit={"ingest": [75, 65]})
    with pytest.raises(pipeline.StageFailed, match=r"ingest@digits failed \(exit code 65\)"):
        training.train_and_promote("digits")
    assert ran(workspace) == ["ingest@digits", "ingest@digits"]


def test_a_training_that_failed_fails_the_run_in_mlflow_too(goes_on: Toy, prefect: Any, heard: Recorder):
    workspace = goes_on(exit={"train": [1]})
    (workspace / "knob.txt").write_text("2")
    with pytest.raises(pipeline.StageFailed, match=r"train@digits-scratch failed \(exit code 1\)"):
        training.train_and_promote("digits")
    assert parents() == ["FINISHED", "FAILED"]
    assert heard.ended == {"train@digits-scratch": "failed"}


def test_a_second_run_of_a_recipe_ends_at_once_and_says_so(toy: Toy, prefect: Any):
    workspace = toy()
    with running.only_run(load_recipe("digits")) as other:
        assert other is None
        state = training.train_and_promote("digits", return_state=True)
    assert state.type.value == "COMPLETED"
    assert state.message.startswith("Skipped: a run of digits is in progress (process ")
    assert ran(workspace) == []


def test_runs_of_two_recipes_do_not_wait_for_each_other(workspace: Path):
    with running.only_run(load_recipe("digits")), running.only_run(load_recipe("cifar10")) as other:
        assert other is None


def test_a_recipe_that_does_not_exist_is_named(toy: Toy, prefect: Any):
    toy()
    with pytest.raises(ValueError, match="no recipe 'nosuch'; there are: digits, cifar10"):
        training.train_and_promote("nosuch")


def test_a_run_that_was_overtaken_is_judged_against_the_new_champion(monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    def promote(recipe: Any, judgement: str) -> None:
        tried.append(judgement)
        if judgement == "old":
            raise promotion.ChampionChanged("version 7 has become champion in the meantime")

    monkeypatch.setattr(training, "promote", promote)
    monkeypatch.setattr(training, "judge", lambda recipe: "new")
    monkeypatch.setattr(promotion, "waiting", lambda recipe, judgement: None)
    assert training.carry_out(load_recipe("digits"), "old") == "new"
    assert tried == ["old", "new"]


def test_a_run_that_is_overtaken_every_time_fails_and_does_not_claim_a_promotion(monkeypatch: pytest.MonkeyPatch):
    def promote(recipe: Any, judgement: str) -> None:
        raise promotion.ChampionChanged("version 7 has become champion in the meantime")

    monkeypatch.setattr(training, "promote", promote)
    monkeypatch.setattr(training, "judge", lambda recipe: "new")
    monkeypatch.setattr(promotion, "waiting", lambda recipe, judgement: None)
    with pytest.raises(promotion.ChampionChanged):
        training.carry_out(load_recipe("digits"), "old")


def test_a_new_judgement_waits_for_a_person_too(monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    def promote(recipe: Any, judgement: str) -> None:
        tried.append(judgement)
        raise promotion.ChampionChanged("version 7 has become champion in the meantime")

    monkeypatch.setattr(training, "promote", promote)
    monkeypatch.setattr(training, "judge", lambda recipe: "new")
    monkeypatch.setattr(promotion, "waiting", lambda recipe, judgement: judgement == "new")
    assert training.carry_out(load_recipe("digits"), "old") == "new"
    assert tried == ["old"]


def test_where_the_recipe_wants_a_person_the_run_ends_with_what_to_say(goes_on: Toy, prefect: Any):
    workspace = goes_on()
    params = workspace / "params.yaml"
    easy = params.read_text().replace("accuracy_floor: 0.9\n", "accuracy_floor: 0.1\n")
    easy = easy.replace("calibration_error: 0.05", "calibration_error: 1.0")
    params.write_text(easy.replace("promotion: automatic", "promotion: manual", 1))
    state = training.train_and_promote("digits", return_state=True)
    assert "It waits for approval: mobilenet-pipeline approve 1 --recipe digits, or reject." in state.message
    assert state.message.endswith("digits-mobilenet has no champion.")
    assert "waits for approval" in training.train_and_promote("digits", return_state=True).message
