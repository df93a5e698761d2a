"""The flow, run in this process against a real Prefect server, over stages that make up their outputs."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from prefect.exceptions import TerminationSignal
from toy_fixtures import Toy
from waiting import Recorder, ran

from flows import training
from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.registry import away, runs, store
from mobilenet_pipeline.registry.aliases import ChampionChanged
from mobilenet_pipeline.release import bento, judging, offline, promotion
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.workspace import locks, paths

ALL = [
    *("ingest@digits", "validate@digits", "train@digits-scratch", "train@digits-pretrained"),
    *("export@digits-scratch", "evaluate@digits-scratch", "export@digits-pretrained", "evaluate@digits-pretrained"),
]


@pytest.fixture
def heard() -> Iterator[Recorder]:
    """What a listener hears of the flow."""
    recorder = Recorder()
    token = training.listener.set(recorder)
    yield recorder
    training.listener.reset(token)


def runs_of_flows() -> list[mlflow.entities.Run]:
    """Return MLflow's runs of flows, oldest first."""
    client = mlflow.MlflowClient(store.use_store())
    found = client.search_runs([runs.experiment(load_recipe("digits"))], "", order_by=["start_time"])
    return [run for run in found if "candidate" not in run.data.tags]


def parents() -> list[str]:
    """Return how MLflow's runs of flows ended, oldest first."""
    return [run.info.status for run in runs_of_flows()]


def artifacts_of(prefect: Any, state: Any) -> dict[str, Any]:
    """Return {key: data} of everything that the run shows beside its result, which has no key."""
    only = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    rows = prefect.request("POST", "/artifacts/filter", json=only).json()
    return {row["key"]: row["data"] for row in rows if row["key"]}


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (None, ["succeeded"]),
        (OSError(), ["failed"]),
        (KeyboardInterrupt(), []),
        (TerminationSignal(signal.SIGTERM), []),
    ],
)
def test_only_an_error_makes_a_run_fail(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, error: Any, noted: list[str]
) -> None:
    outcomes: list[str] = []
    monkeypatch.setattr(training.gauges, "note_run", lambda _, outcome, seconds: outcomes.append(outcome))

    def end(*_: object) -> str:
        if error:
            raise error
        return "done"

    monkeypatch.setattr(training, "run_pipeline", end)
    with pytest.raises(type(error)) if error else nullcontext():
        training.run_and_note(recipe, force=False)
    assert outcomes == noted


def test_a_run_does_every_stage_and_sums_itself_up(finished: Any) -> None:
    assert ran(finished.workspace) == ALL
    assert finished.heard.ended == dict.fromkeys([*ALL, "judge", "promote", "report"], "ran")
    assert "█░ epoch 1/2 loss 0.5 accuracy 0.5 validation 0.5 0.5 0.1 s, 0:00 left" in finished.heard.lines
    assert (finished.state.name, finished.state.type.value) == ("Completed", "COMPLETED")
    assert finished.state.message.startswith("Nothing is promoted: scratch ")
    assert "50.00%" in finished.state.message
    assert finished.state.message.endswith("digits-mobilenet has no champion.")
    assert (finished.workspace / "reports/digits/index.html").exists()


def test_a_run_returns_its_outcome_as_json(finished: Any) -> None:
    report = str(finished.workspace / "reports/digits/index.html")
    expected = {"recipe": "digits", "skipped": False, "message": finished.state.message, "champion": None}
    outcome = finished.state.result()
    assert json.loads(json.dumps(outcome)) == outcome
    assert outcome == {**expected, "verdict": outcome["verdict"], "report": report}
    assert outcome["verdict"] in finished.state.message


def test_the_lines_of_a_run_are_without_dvc_s_advice(finished: Any) -> None:
    assert not [line for line in finished.heard.lines if not line.strip() or line.startswith(training.CHATTER)]


def test_a_run_shows_progress_candidates_verdict_figures_and_times(finished: Any, prefect: Any) -> None:
    shown = artifacts_of(prefect, finished.state)
    assert {*shown} == {
        *("digits-candidates", "digits-verdict", "digits-figures", "digits-stages"),
        *("train-digits-scratch-progress", "train-digits-pretrained-progress"),
    }
    assert float(shown["train-digits-scratch-progress"]) == 100
    assert json.loads(shown["digits-candidates"])[0]["test accuracy"] == "50.00%"
    assert shown["digits-verdict"].startswith("**Nothing is promoted")
    assert "data:image/png;base64," in shown["digits-figures"]
    stages = json.loads(shown["digits-stages"])
    assert [row["stage"] for row in stages] == [*ALL, "total"]
    assert float(stages[-1]["wall seconds"]) > float(stages[0]["wall seconds"]) > 0


def test_a_run_with_nothing_to_do_says_so(after_run: Toy, prefect: Any) -> None:
    workspace = after_run()
    state = training.train_and_promote("digits", return_state=True)
    assert state.message == "Nothing changed: all stages are up to date. digits-mobilenet has no champion."
    assert ran(workspace) == []
    assert parents() == ["FINISHED"]


def test_the_costs_of_a_run_are_in_mlflow(after_run: Toy) -> None:
    after_run()
    (run,) = runs_of_flows()
    assert run.data.metrics["cost/train-scratch/cpu_seconds"] > 0
    assert run.data.metrics["cost/total/peak_bytes"] > 1e7


def test_a_forced_run_does_every_stage_and_keeps_the_verdict(
    after_run: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_run()
    forced: dict[str, bool] = {}

    def pretend(name: str, on_line: Any, variables: Any, force: bool) -> runner.StageResult:
        forced[name] = force
        return runner.StageResult(name, "ran", 1.0, 1.0)

    monkeypatch.setattr(runner, "run_stage", pretend)
    state = training.train_and_promote("digits", force=True, return_state=True)
    assert forced == dict.fromkeys(ALL, True)
    assert state.message.startswith("The candidates and the verdict have not changed: Nothing is")


def test_only_a_failed_download_is_tried_again(toy: Toy, prefect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.stage, "retry_delay_seconds", [0.0, 0.0])
    workspace = toy(exit={"ingest": [75, 65]})  # no network, then wrong data
    with pytest.raises(runner.StageFailed, match=r"ingest@digits failed \(exit code 65\)"):
        training.train_and_promote("digits")
    assert ran(workspace) == ["ingest@digits", "ingest@digits"]


def test_a_failed_training_fails_the_run_in_mlflow_too(after_run: Toy, prefect: Any, heard: Recorder) -> None:
    workspace = after_run(exit={"train": [1]})
    (workspace / "setting.txt").write_text("2")
    with pytest.raises(runner.StageFailed, match=r"train@digits-scratch failed \(exit code 1\)"):
        training.train_and_promote("digits")
    assert parents() == ["FINISHED", "FAILED"]
    assert heard.ended == {"train@digits-scratch": "failed"}


def test_a_second_run_of_a_recipe_is_skipped(toy: Toy, prefect: Any) -> None:
    workspace = toy()
    with locks.only_run(load_recipe("digits")) as other:
        assert other is None
        state = training.train_and_promote("digits", return_state=True)
    assert state.type.value == "COMPLETED"
    assert state.message.startswith("Skipped: a run of digits is in progress (process ")
    assert state.result()["skipped"]
    assert ran(workspace) == []


def test_an_unknown_recipe_is_named(toy: Toy, prefect: Any) -> None:
    toy()
    with pytest.raises(ValueError, match="no recipe 'nosuch'; there are: digits, cifar10"):
        training.train_and_promote("nosuch")


def damage_history(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paths.history_path(load_recipe("digits"), workspace)
    path.parent.mkdir(parents=True)
    path.write_text('{"what": "prom')


def damage_name(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("registered_model: digits-mobilenet", "registered_model: Digits"))


def remove_uv(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bento.shutil, "which", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_history, r"history\.jsonl, line 1 is damaged"),
        (damage_name, r"registered_model: use .* \(it is 'Digits'\)"),
        (remove_uv, "uv is not in "),
    ],
)
def test_a_run_that_could_not_promote_starts_no_stage(
    damage: Callable[[Path, pytest.MonkeyPatch], None],
    message: str,
    toy: Toy,
    prefect: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace = toy()
    damage(workspace, monkeypatch)
    with pytest.raises(ValueError, match=message):
        training.train_and_promote("digits")
    assert ran(workspace) == []


@dataclass
class Judged:
    """A judgement as far as `apply` looks at it."""

    name: str
    state: None = None


OLD, NEW = Judged("old"), Judged("new")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Judged]:
    """The judgements that were promoted; the champion has changed since OLD, and a new judging gives NEW."""
    judgements: list[Judged] = []

    def promote(recipe: Any, judgement: Judged) -> None:
        judgements.append(judgement)
        if judgement is OLD:
            raise ChampionChanged("version 7 has become champion in the meantime")

    monkeypatch.setattr(training, "promote", promote)
    monkeypatch.setattr(training, "judge", lambda recipe: NEW)
    monkeypatch.setattr(promotion, "waiting", lambda recipe, judgement: None)
    return judgements


def test_a_changed_champion_leads_to_a_new_judgement(tried: list[Judged]) -> None:
    assert training.apply(load_recipe("digits"), OLD) is NEW
    assert tried == [OLD, NEW]


def test_a_champion_that_changes_every_time_fails_the_run(tried: list[Judged], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "judge", lambda recipe: OLD)
    with pytest.raises(ChampionChanged):
        training.apply(load_recipe("digits"), OLD)
    assert tried == [OLD] * training.TRIES


def test_a_new_judgement_waits_for_approval_too(tried: list[Judged], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "waiting", lambda recipe, judgement: judgement is NEW)
    monkeypatch.setattr(promotion, "keep_serving", lambda recipe, state: None)
    assert training.apply(load_recipe("digits"), OLD) is NEW
    assert tried == [OLD]


def test_a_run_of_a_manual_recipe_ends_with_the_commands(after_run: Toy, prefect: Any) -> None:
    workspace = after_run()
    params = workspace / "params.yaml"
    easy = params.read_text().replace("accuracy_floor: 0.9\n", "accuracy_floor: 0.1\n")
    easy = easy.replace("calibration_error: 0.05", "calibration_error: 1.0")
    params.write_text(easy.replace("promotion: automatic", "promotion: manual", 1))
    state = training.train_and_promote("digits", return_state=True)
    assert "It waits for approval: mobilenet-pipeline approve 1 --recipe digits, or reject." in state.message
    assert state.message.endswith("digits-mobilenet has no champion.")
    assert "waits for approval" in training.train_and_promote("digits", return_state=True).message


def test_importing_the_flows_loads_neither_tensorflow_nor_matplotlib() -> None:
    # `prefect worker` imports them before their settings of Keras and Matplotlib are in place.
    modules = ["flows.training", "flows.monitoring", "flows.display"]
    modules += [f"mobilenet_pipeline.{name}" for name in ("reports.results", "reports.page", "registry.versions")]
    modules += [f"mobilenet_pipeline.release.{name}" for name in ("bento", "judging", "promotion", "review", "trace")]
    loaded = "' '.join({'tensorflow', 'keras', 'bentoml', 'matplotlib'} & {*sys.modules}) or 0"
    command = [sys.executable, "-c", f"import sys, {', '.join(modules)}; sys.exit({loaded})"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_run_applies_decisions_of_an_outage_before_it_judges(after_run: Toy, prefect: Any) -> None:
    after_run()
    recipe = load_recipe("digits")
    offline.reject(recipe, "1", "too slow", "ann")
    state = training.train_and_promote("digits", return_state=True)
    assert "Version 1 of digits-mobilenet is rejected; no run will promote it." in state.message
    assert offline.pending(recipe) == []


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that need MLflow are tried four times without a wait."""
    monkeypatch.setattr(away, "RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("at_once", "prefect")
def test_a_run_without_mlflow_fails_with_a_sentence(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = toy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    state = training.train_and_promote("digits", return_state=True)
    assert state.is_failed()
    assert state.message.startswith("no MLflow server answers at http://127.0.0.1:9 (MLFLOW_TRACKING_URI); start that")
    assert ran(workspace) == []
    assert caplog.text.count("trying again in 0 s") == 3
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("at_once", "prefect")
@pytest.mark.parametrize(("failures", "ends_as"), [(2, "Completed"), (4, "Failed")])
def test_judging_waits_for_mlflow(
    failures: int,
    ends_as: str,
    after_run: Toy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workspace, judge, left = after_run(), judging.judge, [None] * failures
    (workspace / "reports/digits/verdict.json").unlink()

    def gone(recipe: Recipe) -> Any:
        if left:
            left.pop()
            raise mlflow.MlflowException("the database has gone", TEMPORARILY_UNAVAILABLE)
        return judge(recipe)

    monkeypatch.setattr(judging, "judge", gone)
    state = training.train_and_promote("digits", return_state=True)
    assert state.name == ends_as
    assert ends_as == "Completed" or "does not answer (the database has gone); start it and run" in state.message
    assert "Traceback" not in caplog.text
