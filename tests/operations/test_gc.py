"""What may go, what stays, and removals that were killed."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelOutput
from registry_fixtures import Make, Run, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations import gc
from mobilenet_pipeline.registry import aliases, removal, versions
from mobilenet_pipeline.release import offline
from mobilenet_pipeline.workspace import locks, paths

FOUR_RUNS = ((181, 183), (182, 195), (180, 184), (179, 185))
"""Champions: version 2, then version 4; versions 5 to 8 lose."""


def names(plan: gc.Plan, store: str = "MLflow", what: str = "version") -> list[str]:
    return [each.name for each in plan.leftovers if each.store == store and each.name.startswith(what)]


def carry_out(plan: gc.Plan) -> None:
    for each in plan.leftovers:
        each.remove()


def numbers(recipe: Recipe) -> list[str]:
    return [version.version for version in versions.versions(recipe.registered_model)]


def test_versions_outside_of_history_verdict_and_aliases_may_go(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    assert names(gc.plan(recipe, 0)) == ["version 6", "version 5", "version 3", "version 1"]


def test_a_plan_removes_nothing(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    gc.plan(recipe, 0)
    assert len(numbers(recipe)) == 8


def test_the_newest_versions_stay(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    assert names(gc.plan(recipe, 4)) == ["version 3", "version 1"]


def test_each_kept_version_has_its_reasons(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    kept = gc.plan(recipe, 0).kept
    assert (kept["4"][0], kept["2"]) == ("champion", ["previous", "in the history"])


def test_a_version_that_waits_for_approval_elsewhere_stays(
    recipe: Recipe, runs: Runs, client: mlflow.MlflowClient
) -> None:
    runs(*FOUR_RUNS)
    client.set_model_version_tag(recipe.registered_model, "1", "verdict", "promoted")
    assert gc.plan(recipe, 0).kept["1"] == ["passed the gate"]


def stored(run_id: str, parent: str | None, active: bool = False) -> removal.StoredRun:
    return removal.StoredRun(run_id, parent, 0, active, None, (), (), False)


def test_the_trainings_of_a_flow_in_progress_stay() -> None:
    elsewhere = [stored("flow", None, active=True), stored("training", "flow"), stored("former", None)]
    surplus = gc.surplus_runs(removal.Stock([], elsewhere), {}, 0, set())
    assert [run.run_id for run in surplus] == ["former"]


def test_a_removal_leaves_the_kept_versions_complete(recipe: Recipe, runs: Runs, tmp_path: Path) -> None:
    runs(*FOUR_RUNS)
    carry_out(gc.plan(recipe, 0))
    assert sorted(numbers(recipe)) == ["2", "4", "7", "8"]
    assert all(versions.is_stored(version) for version in versions.versions(recipe.registered_model))


def test_the_artefacts_of_removed_runs_are_off_the_disk(recipe: Recipe, runs: Runs, store: Path) -> None:
    runs(*FOUR_RUNS)
    carry_out(gc.plan(recipe, 0))
    left = {folder.name for folder in (store / "mlruns" / recipe.name).iterdir()}
    assert left == {version.run_id for version in versions.versions(recipe.registered_model)}


def test_a_second_removal_finds_nothing(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    carry_out(gc.plan(recipe, 0))
    assert gc.plan(recipe, 0).leftovers == []


def test_the_number_of_a_removed_version_is_not_used_again(recipe: Recipe, runs: Runs, make: Make, run: Run) -> None:
    runs(*FOUR_RUNS)
    carry_out(gc.plan(recipe, 0))
    make("scratch", right=178)
    run()
    assert max(map(int, numbers(recipe))) == 9


def test_after_a_removal_a_run_has_nothing_to_do(recipe: Recipe, runs: Runs, run: Run) -> None:
    runs(*FOUR_RUNS)
    carry_out(gc.plan(recipe, 0))
    assert run() == "nothing to do"


@pytest.mark.parametrize("killed_after", range(8))
def test_a_killed_removal_is_completed_by_the_next(
    recipe: Recipe, runs: Runs, client: mlflow.MlflowClient, monkeypatch, killed_after: int
) -> None:
    runs(*FOUR_RUNS[:3])
    doomed = versions.find(recipe.registered_model, "3").run_id
    model = client.create_logged_model("0", "model", source_run_id=doomed)
    client.log_outputs(doomed, [LoggedModelOutput(model.model_id, 0)])
    steps = iter(range(100))

    def dying(function):
        def call(*words, **options):
            if next(steps) == killed_after:
                raise KeyboardInterrupt
            return function(*words, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("set_tag", "delete_run", "delete_logged_model", "delete_model_version"):
            patch.setattr(removal.MlflowClient, name, dying(getattr(removal.MlflowClient, name)))
        repository = removal.get_artifact_repository
        patch.setattr(removal, "get_artifact_repository", dying(repository))
        for name in ("_hard_delete_run", "_hard_delete_logged_model"):
            patch.setattr(type(removal._get_store()), name, dying(getattr(type(removal._get_store()), name)))
        with pytest.raises(KeyboardInterrupt):
            carry_out(gc.plan(recipe, 0))
    carry_out(gc.plan(recipe, 0))
    assert (sorted(numbers(recipe)), gc.plan(recipe, 0).leftovers) == (["2", "4", "5", "6"], [])


def test_a_run_that_somebody_put_into_the_trash_stays_there(
    recipe: Recipe, runs: Runs, client: mlflow.MlflowClient
) -> None:
    runs(*FOUR_RUNS)
    trash = versions.find(recipe.registered_model, "1").run_id
    client.delete_run(trash)
    carry_out(gc.plan(recipe, 0))
    assert client.get_run(trash).info.lifecycle_stage == "deleted"


def test_a_damaged_history_stops_the_removal(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    paths.history_path(recipe).write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        gc.plan(recipe, 0)


def test_a_registry_without_the_recorded_champion_stops_the_removal(
    recipe: Recipe, runs: Runs, client: mlflow.MlflowClient
) -> None:
    runs(*FOUR_RUNS)
    client.delete_model_version(recipe.registered_model, "4")
    with pytest.raises(ValueError, match="version 4 as champion, which the registry lacks"):
        gc.plan(recipe, 0)


def test_decisions_that_wait_for_mlflow_stop_the_removal(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    decision = offline.Decision("reject", "1", None, "blurred", "somebody")
    paths.journal_path(recipe).write_text(json.dumps(asdict(decision)) + "\n")
    with pytest.raises(ValueError, match=r"journal\.jsonl has decisions"):
        gc.plan(recipe, 0)


def test_a_negative_number_of_versions_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="--keep -1 is no number of versions"):
        gc.plan(recipe, -1)


def test_nothing_is_removed_beside_a_run(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    with (
        locks.only_run(recipe),
        pytest.raises(BlockingIOError, match="a run of digits is in progress"),
        gc.alone(recipe),
    ):
        pass


def test_an_alias_of_somebody_keeps_its_version(recipe: Recipe, runs: Runs) -> None:
    runs(*FOUR_RUNS)
    aliases.set_alias(recipe.registered_model, "baseline", "1")
    assert gc.plan(recipe, 0).kept["1"] == ["baseline"]


def put_bento(home: Path, name: str, version: str, sha256: str) -> None:
    """Write what the removal reads of a Bento with one model."""
    model, folder = home / "models" / name / f"{version}-m", home / "bentos" / name / f"{version}-b"
    for path, document in (
        (model / "metadata.json", {"sha256": sha256}),
        (folder / "src" / "served.json", {"champion": f"{name}:{version}-m", "challenger": None}),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(document))
    (folder.parent / "latest").write_text(folder.name)


def test_bentos_without_a_kept_champion_may_go(recipe: Recipe, runs: Runs, monkeypatch, tmp_path: Path) -> None:
    runs(*FOUR_RUNS)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentos"))
    for number in ("4", "1"):
        put_bento(
            tmp_path / "bentos", recipe.registered_model, number, versions.find(recipe.registered_model, number).sha256
        )
    plan = gc.plan(recipe, 0)
    assert names(plan, "BentoML", "") == ["Bento digits-mobilenet:1-b", "model digits-mobilenet:1-m"]
    carry_out(plan)
    assert (tmp_path / "bentos/bentos/digits-mobilenet/latest").read_text() == "4-b"


def test_a_bento_that_a_process_serves_stays(recipe: Recipe, runs: Runs, monkeypatch, tmp_path: Path) -> None:
    runs(*FOUR_RUNS)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentos"))
    put_bento(tmp_path / "bentos", recipe.registered_model, "1", versions.find(recipe.registered_model, "1").sha256)
    waiting = [sys.executable, "-c", "input()", "digits-mobilenet:1-b"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as service:
        plan = gc.plan(recipe, 0)
        service.communicate(b"\n")
    assert names(plan, "BentoML", "") == []
