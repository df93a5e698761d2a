"""A person's decisions, against a real registry."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from bentos import Packaging

from flows import training
from mobilenet_pipeline import cli, history, judging, layout, promotion, provenance, registry, results, review, trace
from mobilenet_pipeline.config import CANDIDATES, Recipe

Make = Callable[..., None]
Runs = Callable[..., None]
Run = Callable[[], str]


@pytest.fixture
def manual(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"promotion": "manual"})


@pytest.fixture
def champions(runs: Callable[..., None]) -> None:
    """Version 2 was promoted, then version 4."""
    runs((181, 183), (182, 195))


@pytest.fixture
def complete(champions: None, recipe: Recipe) -> None:
    """With the files that the report is made of."""
    data = layout.data_folder(recipe)
    np.save(data / "images.npy", np.zeros((200, 32, 32, 3), np.uint8))
    np.save(data / "labels.npy", (np.arange(200) % 10).astype(np.uint8))
    for candidate in CANDIDATES:
        columns = "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"
        layout.model_folder(recipe, candidate).joinpath("history.csv").write_text(f"{columns}\n1,2,0.5,2,0.5\n")
    validation = {"success": True, "rows": 200, "expectations": []}
    layout.write_json(layout.report_folder(recipe) / "validation.json", validation)
    layout.write_json(results.results_path(recipe), {"champion": "4", "date": "that of the run"})


DIGEST = "d" * 64


def champion(recipe: Recipe) -> str | None:
    found = registry.with_alias(recipe.registered_model, "champion")
    return found and found.version


def events(recipe: Recipe) -> list[tuple[str, str, str | None, str | None]]:
    return [(event.what, event.version, event.before, event.after) for event in history.read(recipe)]


def test_every_promotion_is_on_record_with_who_was_champion_before(recipe: Recipe, champions: None) -> None:
    assert events(recipe) == [("promoted", "2", None, "2"), ("promoted", "4", "2", "4")]
    assert "there is no champion to keep" in history.read(recipe)[0].why


def test_a_version_s_description_is_its_card(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    card = client.get_model_version(recipe.registered_model, "4").description
    assert card.startswith("Promoted: pretrained, version 4 of digits-mobilenet\n")
    for part in ("97.50% of 200 images (95%: ", "## Accuracy per class", "✓ **size**", "## Limits of use", "artefact"):
        assert part in card


def test_a_rejected_version_carries_the_reason(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    tags = client.get_model_version(recipe.registered_model, "3").tags
    assert (tags["verdict"], "pretrained is promoted" in tags["verdict_reason"]) == ("rejected", True)


def test_where_a_person_decides_the_alias_waits(make: Make, manual: Recipe, packaging: Packaging) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judgement = judging.judge(manual)
    waiting = promotion.waiting(manual, judgement)
    assert (waiting and waiting.version, champion(manual)) == ("2", None)
    assert review.approve(manual, "2", "ann") == "Version 2 of digits-mobilenet is champion."
    assert [(event.what, event.who) for event in history.read(manual)] == [
        ("approved", "ann"),
        ("promoted", "the gate"),
    ]
    assert promotion.waiting(manual, judgement) is None


def test_an_approval_in_the_registry_is_one(
    make: Make, manual: Recipe, packaging: Packaging, client: mlflow.MlflowClient
) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(manual)
    client.set_model_version_tag(manual.registered_model, "2", "approval", "approved")
    judgement = judging.recall(manual)
    assert judgement is not None
    assert promotion.waiting(manual, judgement) is None
    promotion.promote(manual, judgement)
    assert (history.read(manual)[0].what, history.read(manual)[0].who) == ("approved", "someone in the registry")


def test_approving_twice_promotes_once(make: Make, manual: Recipe, packaging: Packaging) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(manual)
    for _ in range(2):
        review.approve(manual, "2", "ann")
    assert [event.what for event in history.read(manual)] == ["approved", "promoted"]
    assert len(packaging.checked) == 1


def test_an_approved_version_says_by_whom(
    make: Make, manual: Recipe, packaging: Packaging, client: mlflow.MlflowClient
) -> None:
    make("scratch", right=181)
    make("pretrained", right=183)
    judging.judge(manual)
    review.approve(manual, "2", "ann")
    description = client.get_model_version(manual.registered_model, "2").description
    assert str(description).startswith("> Approved by ann\n\nPassed the gate: ")


def test_what_the_gate_did_not_pass_cannot_be_approved(make: Make, manual: Recipe, packaging: Packaging) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(manual)
    with pytest.raises(review.ReviewError, match="version 1 of digits-mobilenet does not wait for approval"):
        review.approve(manual, "1", "ann")


def test_a_rejected_version_is_promoted_by_no_run(make: Make, recipe: Recipe, run: Run) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(recipe)
    for _ in range(2):
        review.reject(recipe, "2", "the photos are not ours", "ann")
    assert "scratch is promoted" in run()
    assert events(recipe) == [("rejected", "2", None, None), ("promoted", "1", None, "1")]
    assert (
        "pretrained was taken out: rejected by ann: the photos are not ours"
        in json.loads(Path("reports/digits/verdict.json").read_text())["reason"]
    )


def test_the_champion_cannot_be_rejected(recipe: Recipe, champions: None) -> None:
    with pytest.raises(review.ReviewError, match="version 4 of digits-mobilenet is champion: `mobilenet-pipeline roll"):
        review.reject(recipe, "4", "slow", "ann")


def test_a_rollback_serves_the_champion_before_and_takes_this_one_out(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    assert "Version 2 of digits-mobilenet is champion again" in review.rollback(recipe, None, "slow", "ann")
    live = packaging.live(recipe)
    assert (champion(recipe), live and live.versions["champion"]) == ("2", "2")
    assert events(recipe)[-1] == ("rolled back", "2", "4", "2")
    assert registry.find(recipe.registered_model, "4").withdrawn == "rolled back by ann: slow"


def test_what_was_rolled_back_is_not_promoted_by_the_next_run(recipe: Recipe, champions: None, run: Run) -> None:
    review.rollback(recipe, None, "slow", "ann")
    assert "The champion stays" in run() or "Nothing is promoted" in run()
    assert champion(recipe) == "2"


def test_the_descriptions_begin_with_what_a_person_decided_last(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    def first_line(number: str) -> str:
        return str(client.get_model_version(recipe.registered_model, number).description).splitlines()[0]

    review.reject(recipe, "1", "odd", "ann")
    review.rollback(recipe, None, "slow", "ann")
    assert first_line("1") == "> Taken out: rejected by ann: odd"
    assert first_line("2") == "> Champion again: rolled back by ann: slow"
    assert first_line("4") == "> Taken out: rolled back by ann: slow"
    review.rollback(recipe, "4", "it was the network", "ann")
    assert first_line("4") == "> Champion again: rolled back by ann: it was the network"
    description = client.get_model_version(recipe.registered_model, "4").description
    assert "Promoted: " in description
    assert description.count("> ") == 1


def test_a_rollback_that_was_killed_before_it_was_on_record_is_described_by_the_next(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    registry.set_alias(recipe.registered_model, "champion", "2")
    review.rollback(recipe, "2", "slow", "ann")
    description = client.get_model_version(recipe.registered_model, "2").description
    assert str(description).startswith("> Champion again: rolled back by ann: slow\n")


def test_a_rollback_can_be_said_twice(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    review.rollback(recipe, "2", "slow", "ann")
    built = len(packaging.bentos)
    assert review.rollback(recipe, "2", "slow", "ann") == "Version 2 of digits-mobilenet is champion already."
    assert (len(packaging.bentos), len(events(recipe))) == (built, 3)


def test_a_decision_is_published_in_results_and_report(recipe: Recipe, complete: None) -> None:
    review.rollback(recipe, None, "slow", "ann")
    assert review.publish(recipe) is None
    found = provenance.read_json(results.results_path(recipe))
    assert found == {"champion": "2", "date": "that of the run"}
    page = (layout.report_folder(recipe) / "index.html").read_text(encoding="utf-8")
    assert ">Version 2 is champion again</h1>" in page


def test_a_decision_whose_report_cannot_be_made_says_what_lacks_and_leaves_the_earlier_one(
    recipe: Recipe, complete: None
) -> None:
    page = layout.report_folder(recipe) / "index.html"
    page.write_text("earlier")
    layout.model_folder(recipe, "scratch").joinpath("history.csv").unlink()
    assert review.publish(recipe) == (
        "reports/digits/index.html does not show this yet (not in this workspace: models/digits/scratch/history.csv); "
        "`mobilenet-pipeline run --recipe digits` writes it."
    )
    assert page.read_text() == "earlier"


def test_a_decision_without_results_to_publish_it_in_says_so(recipe: Recipe, complete: None) -> None:
    results.results_path(recipe).unlink()
    assert "does not show this yet (reports/digits/results.json does not exist" in str(review.publish(recipe))


def test_the_decision_s_command_publishes_it(
    recipe: Recipe, complete: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(review, "publish", lambda recipe: f"the report of {recipe.name} lacks a file.")
    assert cli.main(["reject", "1", "--reason", "odd"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Version 1 of digits-mobilenet is rejected; no run will promote it.",
        "the report of digits lacks a file.",
    ]


def test_a_version_is_approved_reviewed_and_rolled_back_by_commands(
    make: Make,
    manual: Recipe,
    packaging: Packaging,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "load_recipe", lambda name: manual)
    monkeypatch.setattr(review, "publish", lambda recipe: None)
    for right in (183, 195):
        make("scratch", right=right - 2)
        make("pretrained", right=right)
        number = judging.judge(manual).champion.version
        assert cli.main(["approve", number]) == 0
        capsys.readouterr()
        assert cli.main(["review", "--json"]) == 0
        verdict = json.loads(capsys.readouterr().out)
        assert (verdict["promote"], verdict["versions"]["pretrained"]) == (True, number)
    assert cli.main(["rollback", "--reason", "slow"]) == 0
    assert "Version 2 of digits-mobilenet is champion again, version 4 is taken out." in capsys.readouterr().out
    assert champion(manual) == "2"


def test_a_rollback_that_someone_else_is_faster_than_says_where_the_alias_is(
    recipe: Recipe, champions: None, packaging: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "check", lambda *_: registry.set_alias(recipe.registered_model, "champion", "1"))
    expected = r"was moved to version 1 while version 2 was tried out; .* It stays there; version 4 is taken out"
    with pytest.raises(review.ReviewError, match=expected):
        review.rollback(recipe, None, "slow", "ann")
    assert champion(recipe) == "1"
    assert registry.find(recipe.registered_model, "4").withdrawn == "rolled back by ann: slow"


def test_a_second_rollback_does_not_return_to_what_the_first_took_out(recipe: Recipe, champions: None) -> None:
    review.rollback(recipe, None, "slow", "ann")
    with pytest.raises(review.ReviewError, match=r"version 4, which was rolled back by ann: slow; name a version"):
        review.rollback(recipe, None, "slower", "ann")
    assert "Version 4" in review.rollback(recipe, "4", "it was the network", "ann")
    assert registry.find(recipe.registered_model, "4").withdrawn is None


@pytest.mark.parametrize("point", ["package", "check", "previous", "champion", "put_live", "append"])
def test_a_rollback_that_was_killed_is_completed_by_the_next(
    point: str, recipe: Recipe, champions: None, packaging: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_alias = registry.set_alias
    with monkeypatch.context() as patch:
        if point == "append":
            patch.setattr(history, point, killed)
        elif point in ("previous", "champion"):
            patch.setattr(
                registry, "set_alias", lambda n, alias, v: killed() if alias == point else set_alias(n, alias, v)
            )
        else:
            patch.setattr(packaging, point, killed)
        with pytest.raises(KeyboardInterrupt):
            review.rollback(recipe, None, "slow", "ann")
    review.rollback(recipe, None, "slow", "ann")
    live = packaging.live(recipe)
    assert (champion(recipe), live and live.versions["champion"]) == ("2", "2")
    assert events(recipe)[-1] == ("rolled back", "2", "4", "2")
    assert registry.find(recipe.registered_model, "4").withdrawn


def test_a_rollback_after_the_alias_was_moved_by_hand_serves_the_champion_on_record_again(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    registry.set_alias(recipe.registered_model, "champion", "1")
    assert "Version 4" in review.rollback(recipe, None, "slow", "ann")
    live = packaging.live(recipe)
    assert (champion(recipe), live and live.versions["champion"]) == ("4", "4")
    assert registry.find(recipe.registered_model, "1").withdrawn == "rolled back by ann: slow"


def test_a_rollback_to_what_cannot_be_served_leaves_everything_as_it_was(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        review.rollback(recipe, None, "slow", "ann")
    assert (champion(recipe), registry.find(recipe.registered_model, "4").withdrawn) == ("4", None)
    assert len(events(recipe)) == 2


def test_a_rollback_that_fails_after_the_alias_was_moved_is_not_undone_by_the_next_run(
    recipe: Recipe, champions: None, packaging: Packaging, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tag: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packaging, "put_live", full)
        with pytest.raises(OSError, match="No space left"):
            review.rollback(recipe, None, "slow", "ann")
    run()
    assert champion(recipe) == "2"


def test_a_rollback_knows_no_champion_of_a_store_that_is_gone(
    store: Path, migrated: Path, recipe: Recipe, champions: None, run: Run
) -> None:
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    run()
    assert events(recipe)[-1] == ("promoted", "2", None, "2")
    with pytest.raises(review.ReviewError, match="has had no champion before version 2"):
        review.rollback(recipe, None, "slow", "ann")


def test_a_rollback_takes_no_version_of_another_store_for_the_champion_on_record(
    store: Path, migrated: Path, recipe: Recipe, champions: None, run: Run
) -> None:
    earlier = layout.history_path(recipe).read_text().splitlines(keepends=True)[0]
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    run()
    layout.history_path(recipe).write_text(earlier)
    with pytest.raises(review.ReviewError, match=r"version 2 is not the champion on record; name a version with --to"):
        review.rollback(recipe, None, "slow", "ann")


def test_a_rollback_that_fails_leaves_a_rejected_version_rejected(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    review.reject(recipe, "1", "odd", "ann")
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        review.rollback(recipe, "1", "slow", "ann")
    assert registry.find(recipe.registered_model, "1").withdrawn == "rejected by ann: odd"


@pytest.mark.parametrize("decide", [review.rollback, review.reject])
def test_a_decision_that_cannot_be_put_on_record_is_not_carried_out(
    recipe: Recipe, champions: None, packaging: Packaging, decide: Callable[..., str]
) -> None:
    record = layout.history_path(recipe)
    kept, served = record.read_text(), packaging.live(recipe)
    record.write_text(f'{kept}{{"what": "rol')
    with pytest.raises(history.HistoryError, match="line 3 is damaged"):
        decide(recipe, "1", "odd", "ann")
    assert (champion(recipe), packaging.live(recipe)) == ("4", served)
    assert [registry.find(recipe.registered_model, number).withdrawn for number in ("1", "4")] == [None, None]


def test_a_rejected_challenger_is_served_no_longer(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    challenger = registry.with_alias(recipe.registered_model, "challenger")
    assert challenger is not None
    review.reject(recipe, challenger.version, "odd", "ann")
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions == {"champion": "4", "challenger": None}


def test_an_alias_that_was_moved_by_other_means_is_found_and_not_called_a_promotion(
    recipe: Recipe, champions: None, run: Run
) -> None:
    registry.set_alias(recipe.registered_model, "champion", "2")
    promotion.settle(
        recipe, "found", registry.find(recipe.registered_model, "2"), "the alias was moved", "the pipeline"
    )
    assert events(recipe)[-1] == ("found", "2", "4", "2")


@pytest.fixture
def decoded_otherwise(make: Make, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 was promoted when images were decoded otherwise; now there are candidates of today's decoding."""
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "preprocessing", lambda: "0" * 64)
        make("scratch", right=181)
        make("pretrained", right=195)
        run()
    make("scratch", right=181)
    make("pretrained", right=195)


def test_a_champion_that_was_trained_with_other_decoding_gives_way(
    recipe: Recipe, decoded_otherwise: None, run: Run, packaging: Packaging
) -> None:
    assert "pretrained is promoted" in run()
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions == {"champion": "4", "challenger": "3"}


def test_an_approval_does_not_ask_how_the_champion_before_was_decoded(manual: Recipe, decoded_otherwise: None) -> None:
    judgement = judging.judge(manual)
    assert (champion(manual), judgement.champion and judgement.champion.version) == ("2", "4")
    assert review.approve(manual, "4", "ann") == "Version 4 of digits-mobilenet is champion."


def test_while_a_version_waits_the_champion_s_lost_bento_is_built_again(
    make: Make, runs: Runs, manual: Recipe, packaging: Packaging
) -> None:
    runs((181, 183))
    make("scratch", right=182)
    make("pretrained", right=195)
    judgement = judging.judge(manual)
    packaging.pointer = None
    assert training.carry_out(manual, judgement) is judgement
    live = packaging.live(manual)
    assert live is not None
    assert (live.versions["champion"], judgement.champion and judgement.champion.version) == ("2", "4")


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_there_is_nothing_to_roll_back_to_after_the_first_promotion(recipe: Recipe, runs: Runs) -> None:
    runs((181, 195))
    with pytest.raises(review.ReviewError, match="has had no champion before version 2"):
        review.rollback(recipe, None, "slow", "ann")


def test_an_unknown_version_is_refused_with_those_there_are(recipe: Recipe, champions: None) -> None:
    with pytest.raises(registry.RegistryError, match="no version 9; there are: 4, 3, 2, 1"):
        review.rollback(recipe, "9", "slow", "ann")


def test_a_review_shows_the_champion_s_card_and_its_verdict(recipe: Recipe, champions: None) -> None:
    card, verdict = review.show(recipe, None)
    assert card.startswith("# Promoted: pretrained, version 4")
    assert verdict["versions"] == {"scratch": "3", "pretrained": "4"}


def test_a_review_before_the_first_run_says_what_to_do(store: Path, recipe: Recipe) -> None:
    with pytest.raises(review.ReviewError, match="has no versions yet: `mobilenet-pipeline run --recipe digits`"):
        review.show(recipe, None)


def test_a_change_in_the_record_shows(recipe: Recipe, champions: None) -> None:
    path = layout.history_path(recipe)
    path.write_text(path.read_text().replace('"before": null', '"before": "1"'))
    with pytest.raises(history.HistoryError, match="line 2 does not follow line 1"):
        history.read(recipe)


def test_a_trace_walks_back_to_the_data_and_finds_that_everything_holds(recipe: Recipe, complete: None) -> None:
    layout.write_json(
        layout.report_folder(recipe) / "validation.json", {"success": True, "data_digest": DIGEST, "expectations": []}
    )
    links = {link.name: link for link in trace.trace(recipe, "4")}
    assert {name for name, link in links.items() if link.holds} == {*links} - {"commit", "data"}
    assert "is no dataset, it lacks manifest.parquet" in links["data"].found  # made-up files
    assert "promoted" in links["history"].found
    assert links["commit"].holds is None  # this workspace has no such commit


def test_a_trace_finds_a_verdict_that_was_changed(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    version = registry.find(recipe.registered_model, "4")
    place = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / "verdict.json"
    place.write_text(place.read_text().replace('"accuracy": 0.975', '"accuracy": 0.985'))
    link = {link.name: link for link in trace.trace(recipe, "4")}["verdict"]
    assert (link.holds, link.found.startswith("verdict.json was changed: its SHA-256 is ")) == (False, True)


def test_a_trace_finds_a_run_of_other_data(recipe: Recipe, champions: None, client: mlflow.MlflowClient) -> None:
    client.set_tag(registry.find(recipe.registered_model, "4").run_id, "data_digest", "e" * 64)
    assert {link.name: link for link in trace.trace(recipe, "4")}["run"].holds is False


def test_a_trace_finds_an_artefact_that_was_changed(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    version = registry.find(recipe.registered_model, "4")
    place = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
    (place / "served" / "model.tflite").write_bytes(b"another")
    links = {link.name: link for link in trace.trace(recipe, "4")}
    assert links["artefact"].holds is False
    assert "SHA-256" in links["artefact"].found
