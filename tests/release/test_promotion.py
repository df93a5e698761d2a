"""Promotion against a real registry and gate, with Bentos that are only recorded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import Make, Packaging, Run, Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases, identity
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.aliases import ChampionChanged
from mobilenet_pipeline.registry.versions import number_of
from mobilenet_pipeline.release import bento, judging, promotion
from mobilenet_pipeline.release.bento import PackagingError
from mobilenet_pipeline.release.evidence import JudgingError
from mobilenet_pipeline.workspace import history, paths

pytestmark = pytest.mark.usefixtures("store")


class Killed(BaseException):
    """The process dies here."""


def die(*_: object) -> None:
    raise Killed


def served(recipe: Recipe, packaging: Packaging) -> tuple[str | None, str | None, str | None]:
    """Return the versions of champion and challenger, and of the champion in the live Bento."""
    state, live = aliases.read_state(recipe.registered_model), packaging.live(recipe)
    return number_of(state.champion), number_of(state.challenger), live and live.versions["champion"]


def drift(recipe: Recipe, packaging: Packaging) -> str | None:
    return promotion.drift(recipe, aliases.read_state(recipe.registered_model), packaging.live(recipe))


def test_the_first_run_promotes_the_better_candidate(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run
) -> None:
    make("scratch", right=185)
    make("pretrained", right=195)
    assert "pretrained is promoted" in run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert packaging.checked == ["digits-mobilenet:1"]


def test_a_second_run_has_nothing_to_do(packaging: Packaging, run: Run, runs: Runs) -> None:
    runs((185, 195))
    assert run() == "nothing to do"
    assert len(packaging.bentos) == 1


def test_candidates_that_are_not_better_leave_the_champion(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((185, 195))
    make("scratch", right=194)
    assert "is the champion (version 2) itself" in run()
    assert served(recipe, packaging) == ("2", "3", "2")
    assert (packaging.bentos[-1].versions["challenger"], run()) == ("3", "nothing to do")


def test_a_better_candidate_replaces_the_champion(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    assert "scratch is promoted" in run()
    assert served(recipe, packaging) == ("3", "2", "3")


def test_a_rejected_pair_is_not_built_again(make: Make, packaging: Packaging, run: Run, runs: Runs) -> None:
    runs((185, 195))
    make("scratch", right=100)
    assert "not promoted" in run()
    assert (len(packaging.bentos), run()) == (1, "nothing to do")


def test_nothing_is_served_if_no_candidate_passes_the_floor(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run
) -> None:
    make("scratch", right=100)
    make("pretrained", right=110)
    assert "Nothing is promoted" in run()
    assert served(recipe, packaging) == (None, None, None)
    assert run() == "nothing to do"


def test_a_candidate_below_the_floor_does_not_become_challenger(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run
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
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    with monkeypatch.context() as patch:
        kill_before(point, patch, packaging)
        with pytest.raises(Killed):
            run()
    # Until the very end the service answers with the old champion.
    moved, live = point in ("live", "record"), point == "record"
    assert served(recipe, packaging)[::2] == ("3" if moved else "2", "3" if live else "2")
    assert (drift(recipe, packaging) is None) == (point not in ("previous", "champion", "live"))
    assert "scratch is promoted" in run()
    assert served(recipe, packaging) == ("3", "2", "3")
    last = packaging.bentos[-1].tag
    assert (drift(recipe, packaging), packaging.checked[-1], run()) == (None, last, "nothing to do")
    assert len(packaging.bentos) == 2
    assert [event.version for event in history.read(recipe)] == ["2", "3"]


def kill_before(point: str, patch: pytest.MonkeyPatch, packaging: Packaging) -> None:
    """Let the process die before `point`."""
    set_alias, fetch = aliases.set_alias, registry.fetch

    def die_at_alias(name: str, alias: str, version: str | None) -> None:
        if alias == point:
            raise Killed
        set_alias(name, alias, version)

    if point == "fetch":
        # Judging fetches the champion; promoting fetches into a folder named after the version.
        patch.setattr(registry, "fetch", lambda v, to: die() if to.name == v.version else fetch(v, to))
    elif point == "record":
        patch.setattr(history, "append", die)
    elif point in ("package", "check", "live"):
        patch.setattr(packaging, "put_live" if point == "live" else point, die)
    else:
        patch.setattr(aliases, "set_alias", die_at_alias)


def test_a_first_run_killed_before_the_alias_is_completed_by_the_next(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run, monkeypatch: pytest.MonkeyPatch
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


def test_a_bento_that_does_not_answer_is_discarded(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert [built.versions["champion"] for built in packaging.bentos] == ["2"]


def test_an_interrupted_check_discards_the_bento(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    runs((181, 185))
    make("scratch", right=197)
    monkeypatch.setattr(packaging, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert served(recipe, packaging) == ("2", "1", "2")
    assert [built.versions["champion"] for built in packaging.bentos] == ["2"]


def test_a_live_bento_that_fails_its_check_is_not_discarded(
    recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((181, 185))
    aliases.set_alias(recipe.registered_model, "challenger", None)
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        run()
    assert packaging.live(recipe) is not None


def test_every_promotion_is_recorded_with_the_champion_before(recipe: Recipe, runs: Runs) -> None:
    runs((181, 183), (182, 195))
    events = history.read(recipe)
    changes = [(event.what, event.version, event.before, event.after) for event in events]
    assert changes == [("promoted", "2", None, "2"), ("promoted", "4", "2", "4")]
    assert "there is no champion" in events[0].why


def test_a_promotion_that_cannot_be_recorded_is_not_applied(
    make: Make, recipe: Recipe, packaging: Packaging, runs: Runs
) -> None:
    runs((181, 183))
    make("pretrained", right=195)
    judgement = judging.judge(recipe)
    with paths.history_path(recipe).open("a") as record:
        record.write('{"what": "prom')
    with pytest.raises(history.HistoryError, match="line 2 is damaged"):
        promotion.promote(recipe, judgement)
    assert served(recipe, packaging)[::2] == ("2", "2")


def test_a_changed_champion_stops_the_promotion(make: Make, recipe: Recipe, packaging: Packaging, runs: Runs) -> None:
    runs((181, 185))
    make("scratch", right=197)
    judgement = judging.judge(recipe)
    aliases.set_alias(recipe.registered_model, "champion", "1")
    with pytest.raises(ChampionChanged, match="version 1 of digits-mobilenet has become champion"):
        promotion.promote(recipe, judgement)
    assert len(packaging.bentos) == 1


@pytest.mark.parametrize("number", ["1", None])
def test_an_alias_that_is_moved_during_the_check_stays_there(
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
    monkeypatch.setattr(packaging, "check", lambda *_: aliases.set_alias(recipe.registered_model, "champion", number))
    with pytest.raises(ChampionChanged, match="the alias champion of digits-mobilenet was moved to"):
        promotion.promote(recipe, judgement)
    assert served(recipe, packaging) == (number, "1", "2")
    assert len(packaging.bentos) == 1


def test_an_alias_that_is_already_where_it_belongs_is_accepted(
    make: Make, recipe: Recipe, packaging: Packaging, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    judgement = judging.judge(recipe)
    monkeypatch.setattr(packaging, "check", lambda *_: aliases.set_alias(recipe.registered_model, "champion", "3"))
    promotion.promote(recipe, judgement)
    assert served(recipe, packaging) == ("3", "2", "3")


def test_the_former_champion_gets_the_alias_previous(make: Make, recipe: Recipe, run: Run, runs: Runs) -> None:
    runs((181, 185))
    assert aliases.with_alias(recipe.registered_model, "previous") is None
    make("scratch", right=197)
    run()
    assert number_of(aliases.with_alias(recipe.registered_model, "previous")) == "2"


def test_a_champion_evaluated_with_another_coverage_is_served_with_it(
    recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((185, 195))
    for path in Path("metrics/digits").glob("*.json"):
        path.write_text(path.read_text().replace('"stated_coverage": 0.95', '"stated_coverage": 0.99'))
    run()
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions["champion"] == "2"
    assert live.answering["champion"]["coverage"] == 0.99


def test_a_deleted_bento_is_built_again(recipe: Recipe, packaging: Packaging, run: Run, runs: Runs) -> None:
    runs((185, 195))
    packaging.bentos.clear()
    assert drift(recipe, packaging) == (
        "Version 2 of digits-mobilenet is champion, but no Bento serves it; "
        "`mobilenet-pipeline run --recipe digits` puts this right."
    )
    run()
    assert served(recipe, packaging) == ("2", "1", "2")


def test_after_a_deleted_store_the_candidates_are_promoted_again(
    store: Path, migrated: Path, recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((185, 195))
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    identity.start_new(recipe)
    run()
    assert served(recipe, packaging) == ("2", "1", "2")


def test_the_same_numbers_in_another_store_get_their_own_bento(
    store: Path, migrated: Path, make: Make, recipe: Recipe, packaging: Packaging, run: Run, runs: Runs
) -> None:
    runs((185, 195))
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    identity.start_new(recipe)
    make("scratch", right=186)
    make("pretrained", right=196)
    run()
    live, champion = packaging.live(recipe), aliases.with_alias(recipe.registered_model, "champion")
    assert live is not None
    assert champion is not None
    assert (live.versions["champion"], live.hashes["champion"]) == ("2", champion.sha256)


def test_a_service_with_changed_code_is_built_again(recipe: Recipe, packaging: Packaging, run: Run, runs: Runs) -> None:
    runs((185, 195))
    packaging.bentos = [replace(packaging.bentos[0], is_current=False)]
    assert "an earlier version of the service's code" in str(drift(recipe, packaging))
    assert "pretrained is promoted" in run()
    assert (len(packaging.bentos), drift(recipe, packaging)) == (2, None)


def test_a_former_champion_beats_the_other_candidate_as_challenger(
    make: Make, recipe: Recipe, packaging: Packaging, run: Run
) -> None:
    make("scratch", right=181)
    make("pretrained", right=188)
    run()
    make("scratch", right=198)
    make("pretrained", right=183)
    run()
    assert served(recipe, packaging) == ("3", "2", "3")


@pytest.mark.parametrize(
    ("alias", "number", "sentence"),
    [
        (
            "champion",
            "1",
            "serves version 2 as champion, but in the registry version 1 of digits-mobilenet is champion",
        ),
        (
            "champion",
            None,
            "serves version 2 as champion, but in the registry no version of digits-mobilenet is champion",
        ),
        ("challenger", None, "serves version 1 as challenger, but in the registry no version"),
    ],
)
def test_a_moved_alias_is_reported_as_drift(
    alias: str, number: str | None, sentence: str, recipe: Recipe, packaging: Packaging, runs: Runs
) -> None:
    runs((185, 195))
    aliases.set_alias(recipe.registered_model, alias, number)
    assert sentence in str(drift(recipe, packaging))


def test_status_shows_what_is_served_and_why(recipe: Recipe, runs: Runs) -> None:
    runs((185, 195))
    status = promotion.status(recipe)
    assert (number_of(status.champion), number_of(status.challenger)) == ("2", "1")
    assert (status.bento, status.verdict and status.verdict.winner) == ("digits-mobilenet:1", "pretrained")
    assert (status.waiting, status.drift) == (None, None)


def test_status_asks_once_for_all_versions(recipe: Recipe, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs((190, 195))
    asked, ask = [], registry.entries_of
    monkeypatch.setattr(registry, "entries_of", lambda name: asked.append(name) or ask(name))
    promotion.status(recipe)
    assert asked == [recipe.registered_model]


def test_status_before_the_first_run_is_empty(recipe: Recipe, packaging: Packaging) -> None:
    assert not any(vars(promotion.status(recipe)).values())


def break_history(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    path = paths.history_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"what": "prom')
    return recipe


def break_read_counts(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    path = paths.ledger_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"at": "2026')
    return recipe


def break_comparisons(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    path = paths.comparison_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"at": "2026')
    return recipe


def remove_uv(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(bento.shutil, "which", lambda *_, **__: None)
    return recipe


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"class_names": [*"012345678", "fox"]}, r"other classes \(\+ fox, - 9\)"),
        ({"image_size": 64}, "images of 32 pixels, not 64"),
        ({"resize": "pad"}, "images resized by crop, not pad"),
    ],
)
def test_a_champion_that_cannot_be_compared_is_named_before_anything_is_trained(
    change: dict[str, Any], difference: str, recipe: Recipe, runs: Runs
) -> None:
    runs((185, 195))
    data = recipe.data.model_copy(update={**change, "digest": "another"})
    with pytest.raises(JudgingError, match=f"version 2, has {difference}, so it cannot be compared"):
        promotion.check_ready(recipe.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (break_history, history.HistoryError, r"history\.jsonl, line 1 is damaged"),
        (break_read_counts, ValueError, r"test_reads\.jsonl, line 1 is damaged"),
        (break_comparisons, ValueError, r"comparisons\.jsonl, line 1 is damaged"),
        (remove_uv, PackagingError, "uv is not in"),
    ],
)
def test_what_a_run_needs_at_its_end_is_checked_at_its_start(
    break_it: Callable[[Recipe, pytest.MonkeyPatch], Recipe],
    error: type[Exception],
    message: str,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promotion.check_ready(recipe)
    broken = break_it(recipe, monkeypatch)
    with pytest.raises(error, match=message):
        promotion.check_ready(broken)
