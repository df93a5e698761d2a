"""Promotion against a real registry and gate, with Bentos that are records of themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from bentos import Packaging

from mobilenet_pipeline import config, evaluation, history, images, judging, layout, ledger, promotion, registry, split
from mobilenet_pipeline.config import Recipe

Make = Callable[..., None]
Runs = Callable[..., None]
Run = Callable[[], str]
FIGURES_BESIDE = judging._figures_beside  # which `run` has replaced


class Killed(BaseException):
    """The process dies here."""


def served(recipe: Recipe, packaging: Packaging) -> tuple[str | None, str | None, str | None]:
    """The versions of champion and challenger, and of the champion in the live Bento."""
    versions = [registry.with_alias(recipe.registered_model, alias) for alias in ("champion", "challenger")]
    bento = packaging.live(recipe)
    return (
        versions[0] and versions[0].version,
        versions[1] and versions[1].version,
        bento and bento.versions["champion"],
    )


def test_the_first_run_promotes_the_better_candidate(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str]
) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    assert "pretrained is promoted" in run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert packaging.checked == ["digits-mobilenet:1"]


def test_judging_draws_the_figures_of_both_candidates(
    make: Make, recipe: Recipe, packaging: Packaging, client: mlflow.MlflowClient
) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    for version in judging.judge(recipe).candidates.values():
        drawn = [Path(file.path).name for file in client.list_artifacts(version.run_id, "figures")]
        assert drawn == [
            f"{name}.png" for name in ("accuracy_per_class", "confusion_matrix", "corruptions", "reliability")
        ]


def test_the_verdict_is_on_disk_with_versions_artefacts_and_what_it_leaves(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    verdict = json.loads(Path("reports/digits/verdict.json").read_text())
    export = json.loads(Path("models/digits/scratch/export.json").read_text())
    assert (verdict["versions"], verdict["artefacts"]["scratch"]) == (
        {"scratch": "1", "pretrained": "2"},
        export["sha256"],
    )
    assert verdict["leaves"] == {"champion": "2", "challenger": "1"}


def test_a_second_run_has_nothing_to_do(packaging: Packaging, run: Callable[[], str], runs: Runs) -> None:
    runs((185, 195))
    assert run() == "nothing to do"
    assert len(packaging.bentos) == 1


def test_candidates_that_are_not_better_leave_the_champion(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    make("scratch", right=194)
    assert "is the champion (version 2) itself" in run()
    assert served(recipe, packaging) == ("2", "3", "2")
    assert (packaging.bentos[-1].versions["challenger"], run()) == ("3", "nothing to do")


def test_a_better_candidate_takes_over_from_the_champion(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    assert "scratch is promoted" in run()
    assert served(recipe, packaging) == ("3", "2", "3")


def test_a_rejected_pair_is_not_built_again(
    make: Make, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    make("scratch", right=100)
    assert "not promoted" in run()
    assert (len(packaging.bentos), run()) == (1, "nothing to do")


def test_nothing_is_served_while_no_candidate_passes_the_floor(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str]
) -> None:
    make("scratch", right=100)
    make("pretrained", right=110)
    assert "Nothing is promoted" in run()
    assert served(recipe, packaging) == (None, None, None)
    assert run() == "nothing to do"


def test_a_candidate_below_the_floor_does_not_become_challenger(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str]
) -> None:
    make("scratch", right=100)
    make("pretrained", right=195)
    run()
    assert served(recipe, packaging) == ("2", None, "2")


@pytest.mark.parametrize("point", ["fetch", "package", "check", "challenger", "previous", "champion", "live", "record"])
def test_a_run_killed_while_promoting_is_completed_by_the_next(
    point: str,
    make: Make,
    recipe: Recipe,
    packaging: Packaging,
    run: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    with monkeypatch.context() as patch:
        kill_before(point, patch, packaging)
        with pytest.raises(Killed):
            run()
    # Until the very end the old champion is what is served.
    moved, live = point in ("live", "record"), point == "record"
    assert served(recipe, packaging)[::2] == ("3" if moved else "2", "3" if live else "2")
    assert (promotion.consistent(recipe) is None) == (point not in ("previous", "champion", "live"))
    assert "scratch is promoted" in run()
    assert served(recipe, packaging) == ("3", "2", "3")
    assert (promotion.consistent(recipe), packaging.checked[-1], run()) == (
        None,
        packaging.bentos[-1].tag,
        "nothing to do",
    )
    assert len(packaging.bentos) == 2
    assert [event.version for event in history.read(recipe)] == ["2", "3"]


def kill_before(point: str, patch: pytest.MonkeyPatch, packaging: Packaging) -> None:
    """Let the process die when it comes to `point`."""

    def die(*_: object) -> None:
        raise Killed

    set_alias = registry.set_alias

    def die_at_alias(name: str, alias: str, version: str | None) -> None:
        if alias == point:
            raise Killed
        set_alias(name, alias, version)

    if point == "fetch":
        # Judging fetches the champion; promoting fetches into a folder named after the version.
        fetch = registry.fetch
        patch.setattr(registry, "fetch", lambda v, to: die() if to.name == v.version else fetch(v, to))
    elif point == "record":
        patch.setattr(history, "append", die)
    elif point in ("package", "check", "live"):
        patch.setattr(packaging, "put_live" if point == "live" else point, die)
    else:
        patch.setattr(registry, "set_alias", die_at_alias)


def test_a_first_run_killed_before_the_alias_is_completed_by_the_next(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("scratch", right=181)
    make("pretrained", right=185)
    with monkeypatch.context() as patch:
        kill_before("champion", patch, packaging)
        with pytest.raises(Killed):
            run()
    assert served(recipe, packaging) == (None, "1", None)
    run()
    assert served(recipe, packaging) == ("2", "1", "2")


def test_a_run_killed_while_judging_is_completed_by_the_next(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("scratch", right=181)
    make("pretrained", right=185)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "record_verdict", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run()
    run()
    assert [version.verdict for version in registry.versions(recipe.registered_model)] == ["promoted", "rejected"]


def test_a_bento_that_does_not_answer_is_taken_away_and_the_champion_stays(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert [bento.versions["champion"] for bento in packaging.bentos] == ["2"]


def test_an_interrupt_while_the_bento_is_tried_takes_it_away_too(
    make: Make,
    recipe: Recipe,
    packaging: Packaging,
    run: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    monkeypatch.setattr(packaging, "check", lambda tag, milliseconds: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert [bento.versions["champion"] for bento in packaging.bentos] == ["2"]


def test_a_live_bento_that_does_not_answer_when_it_is_tried_again_is_not_taken_away(
    recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((181, 185))
    registry.set_alias(recipe.registered_model, "challenger", None)
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        run()
    assert packaging.live(recipe) is not None


def test_a_promotion_that_cannot_be_put_on_record_is_not_carried_out(
    recipe: Recipe, packaging: Packaging, runs: Runs
) -> None:
    runs((181, 183))
    with layout.history_path(recipe).open("a") as record:
        record.write('{"what": "prom')
    with pytest.raises(history.HistoryError, match="line 2 is damaged"):
        runs((182, 195))
    live = packaging.live(recipe)
    assert live is not None
    assert (promotion.aliases(recipe)["champion"], live.versions["champion"]) == ("2", "2")


def test_a_champion_that_changed_since_the_verdict_stops_the_promotion(
    make: Make, recipe: Recipe, packaging: Packaging, runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    judgement = judging.judge(recipe)
    registry.set_alias(recipe.registered_model, "champion", "1")
    with pytest.raises(promotion.PromotionError, match="version 1 of digits-mobilenet has become champion"):
        promotion.promote(recipe, judgement)
    assert len(packaging.bentos) == 1


@pytest.mark.parametrize("number", ["1", None])
def test_an_alias_that_is_moved_while_the_bento_is_tried_stays_where_it_was_put(
    number: str | None,
    make: Make,
    recipe: Recipe,
    packaging: Packaging,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    judgement = judging.judge(recipe)
    monkeypatch.setattr(packaging, "check", lambda *_: registry.set_alias(recipe.registered_model, "champion", number))
    with pytest.raises(promotion.ChampionChanged, match="the alias champion of digits-mobilenet was moved to"):
        promotion.promote(recipe, judgement)
    assert served(recipe, packaging) == (number, "1", "2")
    assert len(packaging.bentos) == 1


def test_an_alias_that_someone_has_moved_already_to_where_it_belongs_is_no_obstacle(
    make: Make, recipe: Recipe, packaging: Packaging, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    judgement = judging.judge(recipe)
    monkeypatch.setattr(packaging, "check", lambda *_: registry.set_alias(recipe.registered_model, "champion", "3"))
    promotion.promote(recipe, judgement)
    assert served(recipe, packaging) == ("3", "2", "3")


def test_who_was_champion_before_is_called_previous(make: Make, recipe: Recipe, run: Run, runs: Runs) -> None:
    runs((181, 185))
    assert registry.with_alias(recipe.registered_model, "previous") is None
    make("scratch", right=197)
    run()
    previous = registry.with_alias(recipe.registered_model, "previous")
    assert previous is not None
    assert previous.version == "2"


def test_a_candidate_is_drawn_beside_the_champion_that_it_was_held_against(
    make: Make, recipe: Recipe, runs: Runs, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 185))
    monkeypatch.setattr(judging, "_figures_beside", FIGURES_BESIDE)
    make("scratch", right=197)
    version = judging.judge(recipe).candidates["scratch"]
    drawn = {Path(file.path).name for file in client.list_artifacts(version.run_id, "figures")}
    assert drawn == {"confusion_beside_champion.png", "confusion_less_champion.png", "champions.png"}


def test_a_champion_of_other_data_is_measured_again_on_the_new_test_images(
    make: Make,
    recipe: Recipe,
    packaging: Packaging,
    run: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
) -> None:
    runs((181, 185))
    for candidate, right in (("scratch", 182), ("pretrained", 190)):
        make(candidate, right=right, digest="e" * 64)
    labels = (np.arange(200) % 10).astype(np.uint8)
    data = images.Dataset(np.zeros((200, 32, 32, 3)), labels, np.ones(200, bool), "e" * 64, [], 0)
    monkeypatch.setattr(images, "open_dataset", lambda folder: data)
    monkeypatch.setattr(split, "training_rows", lambda *_: (np.arange(0), np.arange(0)))
    measured: list[bytes] = []

    def evaluate(artefact: Path, *_: object) -> tuple[dict, dict]:
        measured.append(artefact.read_bytes())
        document = json.loads(Path("metrics/digits/scratch.json").read_text())
        return document, dict(np.load("models/digits/scratch/predictions.npz")) | {
            "probabilities": np.full((200, 10), 0.1, np.float32)
        }

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert "pretrained is promoted" in run()
    document = json.loads(Path("reports/digits/verdict.json").read_text())
    assert (document["champion_measured_again"], document["champion"]["accuracy"]) == (True, 0.1)
    assert measured == [b"pretrained 185 " + b"d" * 64]
    assert (document["test_reads"], ledger.count_reads("e" * 64)) == (1, 1)


def test_a_champion_that_was_measured_by_an_earlier_version_of_this_project_is_measured_again(
    make: Make, recipe: Recipe, packaging: Packaging, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    data = images.Dataset(np.zeros((1, 32, 32, 3)), np.zeros(1, np.uint8), np.ones(1, bool), "d" * 64, [], 0)
    document = json.loads(Path("metrics/digits/pretrained.json").read_text())
    monkeypatch.setattr(images, "open_dataset", lambda folder: data)
    monkeypatch.setattr(split, "training_rows", lambda *_: (np.arange(0), np.arange(0)))
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *_: (document, dict(np.load("models/digits/pretrained/predictions.npz")))
    )
    monkeypatch.setattr(evaluation, "is_complete", lambda *_: False)
    assert judging.judge(recipe).document["champion_measured_again"]


def lighter(recipe: Recipe) -> Recipe:
    """The recipe that lets one as good and lighter take over."""
    rule = config.Lighter(margin=0.1, saving=0.2)
    return recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"as_good_and_lighter": rule})})


def test_where_lighter_counts_candidates_and_champion_are_timed_side_by_side(
    make: Make, recipe: Recipe, packaging: Packaging, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    runs((185, 195))
    make("scratch", right=194)
    timed: list[tuple[bytes, bytes]] = []

    def time_in_turn(candidate: Path, champion: Path) -> tuple[float, float]:
        timed.append((candidate.read_bytes()[:11], champion.read_bytes()[:14]))
        return 0.5, 1.0

    monkeypatch.setattr(evaluation, "time_in_turn", time_in_turn)
    document = judging.judge(lighter(recipe)).document
    assert timed == [(b"scratch 194", b"pretrained 195")]  # pretrained is the champion itself
    said = {check["candidate"]: check["sentence"] for check in document["checks"] if "lighter" in check["name"]}
    assert "an image takes it 0.500 ms and the champion (version 2) 1.000 ms" in said["scratch"]


def test_where_lighter_does_not_count_nothing_is_timed(
    make: Make, recipe: Recipe, packaging: Packaging, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    runs((185, 195))
    make("scratch", right=194)
    monkeypatch.setattr(evaluation, "time_in_turn", lambda *_: pytest.fail("timed"))
    assert judging.judge(recipe).document["champion"]["version"] == "2"


def test_a_changed_limit_is_judged_again(recipe: Recipe, packaging: Packaging, runs: Runs) -> None:
    runs((185, 195))
    stricter = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"accuracy_floor": 0.99})})
    assert judging.recall(recipe)
    assert judging.recall(stricter) is None


def test_a_bento_that_someone_deleted_is_built_again(
    recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    packaging.bentos.clear()
    assert promotion.consistent(recipe) == (
        "Version 2 of digits-mobilenet is champion, but no Bento with it is served; "
        "`mobilenet-pipeline run --recipe digits` puts this right."
    )
    run()
    assert served(recipe, packaging) == ("2", "1", "2")


def test_a_deleted_store_is_judged_again(
    store: Path, migrated: Path, recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    assert judging.recall(recipe) is None
    run()
    assert served(recipe, packaging) == ("2", "1", "2")


def test_another_store_whose_versions_have_the_same_numbers_gets_a_bento_of_its_own(
    store: Path, migrated: Path, make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    make("scratch", right=186)
    make("pretrained", right=196)
    run()
    live, champion = packaging.live(recipe), registry.with_alias(recipe.registered_model, "champion")
    assert live is not None
    assert champion is not None
    assert (live.versions["champion"], live.hashes["champion"]) == ("2", champion.sha256)


def test_a_service_whose_code_changed_is_built_again(
    recipe: Recipe, packaging: Packaging, run: Callable[[], str], runs: Runs
) -> None:
    runs((185, 195))
    packaging.bentos = [replace(packaging.bentos[0], is_current=False)]
    assert "an earlier version of the service's code" in str(promotion.consistent(recipe))
    assert "pretrained is promoted" in run()
    assert (len(packaging.bentos), promotion.consistent(recipe)) == (2, None)


def test_a_dethroned_champion_that_beats_the_other_candidate_becomes_challenger(
    make: Make, recipe: Recipe, packaging: Packaging, run: Callable[[], str]
) -> None:
    make("scratch", right=181)
    make("pretrained", right=188)
    run()
    make("scratch", right=198)
    make("pretrained", right=183)
    run()
    assert served(recipe, packaging) == ("3", "2", "3")


def test_an_alias_that_someone_moved_is_told(recipe: Recipe, packaging: Packaging, runs: Runs) -> None:
    runs((185, 195))
    registry.set_alias(recipe.registered_model, "champion", "1")
    told = "serves version 2 as champion, but in the registry version 1 of digits-mobilenet is champion"
    assert told in str(promotion.consistent(recipe))
    registry.set_alias(recipe.registered_model, "champion", None)
    assert "but in the registry no version of digits-mobilenet is champion" in str(promotion.consistent(recipe))
    registry.set_alias(recipe.registered_model, "champion", "2")
    registry.set_alias(recipe.registered_model, "challenger", None)
    assert "serves version 1 as challenger, but in the registry no version" in str(promotion.consistent(recipe))


def test_status_tells_what_is_served_and_why(recipe: Recipe, packaging: Packaging, runs: Runs) -> None:
    runs((185, 195))
    status = promotion.status(recipe)
    assert (status["champion"].version, status["challenger"].version) == ("2", "1")
    assert (status["bento"], status["verdict"]["winner"], status["drift"]) == ("digits-mobilenet:1", "pretrained", None)


def test_status_before_the_first_run_is_empty(store: Path, recipe: Recipe, packaging: Packaging) -> None:
    assert promotion.status(recipe) == dict.fromkeys(["champion", "challenger", "bento", "verdict", "waiting", "drift"])
