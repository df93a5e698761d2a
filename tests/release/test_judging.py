"""Judging against a real registry and gate, with candidates of made-up files."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from registry_fixtures import ROWS, Make, Run, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.gate.verdict import GateError
from mobilenet_pipeline.registry import reference
from mobilenet_pipeline.registry import runs as training_runs
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.identity import OtherRegistry
from mobilenet_pipeline.release import judging
from mobilenet_pipeline.reports import candidate_figures
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.history import HistoryError

pytestmark = pytest.mark.usefixtures("store")


def read_verdict_json() -> dict[str, Any]:
    return json.loads(Path("reports/digits/verdict.json").read_text())


def figures_of(client: mlflow.MlflowClient, recipe: Recipe, number: str) -> list[str]:
    """Return the names of the figures in the registry."""
    run_id = registry.find(recipe.registered_model, number).run_id
    return [Path(file.path).name for file in client.list_artifacts(run_id, "figures")]


def test_the_figures_of_both_candidates_are_drawn(make: Make, recipe: Recipe, client: mlflow.MlflowClient) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    for number in judging.judge(recipe).verdict.versions.values():
        names = ("accuracy_per_class", "confusion_matrix", "corruptions", "reliability")
        assert figures_of(client, recipe, number) == [f"{name}.png" for name in names]


def test_registered_candidates_are_not_drawn_again(recipe: Recipe, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs((185, 195))
    monkeypatch.setattr(judging, "draw_candidate", lambda *_: pytest.fail("drawn"))
    assert judging.judge(recipe).verdict.versions == {"scratch": "1", "pretrained": "2"}


def test_a_registered_candidate_has_a_reference_for_the_monitoring(recipe: Recipe, make: Make) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    np.save("data/digits/images.npy", np.zeros((ROWS, 8, 8, 3), np.uint8))
    champion = judging.judge(recipe).champion
    assert champion is not None
    stored = reference.fetch(champion)
    assert stored is not None
    assert Reference.from_bytes(stored, "MLflow").rows == ROWS


def test_a_candidate_is_drawn_beside_its_champion(
    make: Make, recipe: Recipe, runs: Runs, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 185))
    monkeypatch.setattr(judging, "draw_beside_champion", candidate_figures.draw_beside_champion)
    make("scratch", right=197)
    number = judging.judge(recipe).verdict.versions["scratch"]
    expected = {"confusion_beside_champion.png", "confusion_less_champion.png", "champions.png"}
    assert set(figures_of(client, recipe, number)) == expected


def test_the_verdict_on_disk_has_versions_artefacts_and_aliases(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    verdict = read_verdict_json()
    export = json.loads(Path("models/digits/scratch/export.json").read_text())
    assert verdict["versions"] == {"scratch": "1", "pretrained": "2"}
    assert verdict["artefacts"]["scratch"] == export["sha256"]
    assert verdict["leaves"] == {"champion": "2", "challenger": "1"}


def test_a_version_s_description_is_its_card(recipe: Recipe, runs: Runs, client: mlflow.MlflowClient) -> None:
    runs((181, 183), (182, 195))
    card = client.get_model_version(recipe.registered_model, "4").description
    assert card.startswith("Promoted: pretrained, version 4 of digits-mobilenet\n")
    for part in ("97.50% of 200 images (95 % interval: ", "## Accuracy per class", "✓ **size**", "## Limits of use"):
        assert part in card
    assert "artefact" in card


def test_a_rejected_version_has_the_reason(recipe: Recipe, runs: Runs, client: mlflow.MlflowClient) -> None:
    runs((181, 183), (182, 195))
    version = client.get_model_version(recipe.registered_model, "3")
    assert (version.tags["verdict"], "pretrained is promoted" in version.description) == ("rejected", True)


def test_nothing_is_registered_if_the_gate_refuses_to_compare(make: Make, recipe: Recipe) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    path = Path("models/digits/pretrained/predictions.npz")
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "labels": arrays["labels"][::-1]})
    with pytest.raises(GateError, match="predictions of pretrained have other labels"):
        judging.judge(recipe)
    assert registry.versions(recipe.registered_model) == []
    assert not Path("reports/digits/verdict.json").exists()


def test_nothing_is_registered_if_the_history_is_damaged(make: Make, recipe: Recipe) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    path = paths.history_path(recipe)
    path.parent.mkdir(parents=True)
    path.write_text('{"what": "prom')
    with pytest.raises(HistoryError, match="line 1 is damaged"):
        judging.judge(recipe)
    assert registry.versions(recipe.registered_model) == []


def test_a_run_killed_while_judging_is_completed_by_the_next(
    make: Make, recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    make("scratch", right=181)
    make("pretrained", right=185)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "record_verdict", die)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert [version.verdict for version in registry.versions(recipe.registered_model)] == ["promoted", "rejected"]


def test_a_verdict_is_recalled_until_a_limit_changes(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    stricter = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"accuracy_floor": 0.99})})
    recalled = judging.recall(recipe)
    assert recalled is not None
    assert recalled.verdict == judging.read_verdict(recipe)
    assert judging.recall(stricter) is None


def test_a_verdict_is_not_recalled_after_an_evaluation_that_found_other_limits(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    metrics = Path("metrics/digits/scratch.json")
    metrics.write_text(metrics.read_text().replace('"threshold": 2.0', '"threshold": 2.5'))
    assert judging.recall(recipe) is None


def test_a_verdict_of_a_deleted_version_is_not_recalled(
    recipe: Recipe, runs: Runs, client: mlflow.MlflowClient
) -> None:
    runs((185, 195))
    client.delete_model_version(recipe.registered_model, "1")
    assert judging.recall(recipe) is None


def test_a_verdict_of_a_deleted_store_is_refused(store: Path, migrated: Path, recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    with pytest.raises(OtherRegistry):
        judging.recall(recipe)


def test_a_damaged_verdict_is_not_recalled(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    Path("reports/digits/verdict.json").write_text('{"reason": ')
    assert judging.recall(recipe) is None


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_dry_run_changes_nothing(recipe: Recipe, runs: Runs, make: Make, store: Path) -> None:
    runs((181, 183))
    make("pretrained", right=197)
    before = files_in(store)
    judging.preview(recipe)
    assert {
        name for name, data in files_in(store).items() if before.get(name) != data and ".numbering" not in name
    } == set()


def test_a_dry_run_decides_as_the_run_after_it(recipe: Recipe, runs: Runs, make: Make) -> None:
    runs((181, 183))
    make("pretrained", right=197)
    decision = judging.preview(recipe)
    verdict = judging.judge(recipe).verdict
    assert (decision.promote, decision.winner, decision.checks) == (verdict.promote, verdict.winner, verdict.checks)


def test_two_dry_runs_leave_the_same_budget(recipe: Recipe, runs: Runs, make: Make) -> None:
    runs((181, 183))
    make("pretrained", right=197)
    first, second = judging.preview(recipe), judging.preview(recipe)
    assert (first.budget_left, first.comparison) == (second.budget_left, second.comparison)


def test_a_dry_run_does_not_score_a_champion_of_other_images(recipe: Recipe, runs: Runs, make: Make) -> None:
    runs((181, 183))
    for candidate in ("scratch", "pretrained"):
        make(candidate, right=197, digest="e" * 64)
    with pytest.raises(ValueError, match="a dry run does not score it"):
        judging.preview(recipe)


def test_a_twin_is_a_version_with_a_run_of_its_own_beside_its_candidate(
    recipe: Recipe, make: Make, dataset: dict[str, Any], client: mlflow.MlflowClient
) -> None:
    with_twins = recipe.model_copy(
        update={
            "candidates": {"wide": recipe.candidate("scratch")},
            "serving": recipe.serving.model_copy(update={"precision": ["float32", "int8"]}),
        }
    )
    with training_runs.candidate_run(with_twins, "wide", None, dataset) as training:
        run_id = training.run_id
    for name in with_twins.artefacts:
        make(name, right=190, run_id=run_id, artefact=name.encode())
    verdict = judging.judge(with_twins).verdict
    assert verdict.versions == {"wide": "1", "wide_int8": "2"}
    first, second = (registry.find(recipe.registered_model, number) for number in ("1", "2"))
    assert (first.run_id, second.candidate) == (run_id, "wide_int8")
    assert client.get_run(second.run_id).data.tags["training_run"] == run_id
