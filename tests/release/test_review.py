"""A person's decisions, against a real registry."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from registry_fixtures import Make, Packaging, Run, Runs

from flows import training
from mobilenet_pipeline import cli
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases, identity, versions
from mobilenet_pipeline.registry.versions import number_of
from mobilenet_pipeline.release import judging, promotion, review
from mobilenet_pipeline.reports import results
from mobilenet_pipeline.workspace import files, history, paths

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def manual(recipe: Recipe, without_figures: None) -> Recipe:
    """The recipe in which a person promotes."""
    return recipe.model_copy(update={"promotion": "manual"})


@pytest.fixture
def judged(make: Make, manual: Recipe, packaging: Packaging) -> judging.Judgement:
    """Version 1 is scratch; version 2 is pretrained, passed the gate and waits for approval."""
    make("scratch", right=181)
    make("pretrained", right=195)
    return judging.judge(manual)


@pytest.fixture
def champions(runs: Runs) -> None:
    """Version 2 was promoted, then version 4."""
    runs((181, 183), (182, 195))


@pytest.fixture
def complete(champions: None, recipe: Recipe) -> None:
    """`champions`, with the files that the report is made of."""
    data = paths.data_folder(recipe)
    np.save(data / "images.npy", np.zeros((200, 32, 32, 3), np.uint8))
    np.save(data / "labels.npy", (np.arange(200) % 10).astype(np.uint8))
    for candidate in recipe.artefacts:
        columns = "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"
        paths.model_folder(recipe, candidate).joinpath("history.csv").write_text(f"{columns}\n1,2,0.5,2,0.5\n")
    validation = {"success": True, "rows": 200, "expectations": []}
    files.write_json(paths.report_folder(recipe) / "near_duplicates.json", {"pairs": [], "sentence": "none"})
    files.write_json(paths.report_folder(recipe) / "validation.json", validation)
    files.write_json(results.results_path(recipe), {"champion": "4", "date": "that of the run"})


def champion(recipe: Recipe) -> str | None:
    return number_of(aliases.with_alias(recipe.registered_model, "champion"))


def served(recipe: Recipe, packaging: Packaging) -> str | None:
    """Return the version of the champion in the live Bento."""
    live = packaging.live(recipe)
    return live and live.versions["champion"]


def withdrawn(recipe: Recipe, number: str) -> str | None:
    return versions.find(recipe.registered_model, number).withdrawn


def events(recipe: Recipe) -> list[tuple[str, str, str | None, str | None]]:
    return [(event.what, event.version, event.before, event.after) for event in history.read(recipe)]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_version_waits_until_a_person_approves_it(manual: Recipe, judged: judging.Judgement) -> None:
    assert (number_of(promotion.waiting(manual, judged)), champion(manual)) == ("2", None)
    assert review.approve(manual, "2", "ann") == "Version 2 of digits-mobilenet is champion."
    who = [(event.what, event.who) for event in history.read(manual)]
    assert who == [("approved", "ann"), ("promoted", "the gate")]
    recalled = judging.recall(manual)
    assert recalled is not None
    assert promotion.waiting(manual, recalled) is None


def test_a_tag_in_the_registry_is_an_approval(
    manual: Recipe, judged: judging.Judgement, client: mlflow.MlflowClient
) -> None:
    client.set_model_version_tag(manual.registered_model, "2", "approval", "approved")
    recalled = judging.recall(manual)
    assert recalled is not None
    assert promotion.waiting(manual, recalled) is None
    promotion.promote(manual, recalled)
    first = history.read(manual)[0]
    assert (first.what, first.who) == ("approved", "someone in the registry")


def test_approving_twice_promotes_once(manual: Recipe, judged: judging.Judgement, packaging: Packaging) -> None:
    for _ in range(2):
        review.approve(manual, "2", "ann")
    assert [event.what for event in history.read(manual)] == ["approved", "promoted"]
    assert len(packaging.checked) == 1


def test_an_approved_version_names_its_approver(
    manual: Recipe, judged: judging.Judgement, client: mlflow.MlflowClient
) -> None:
    review.approve(manual, "2", "ann")
    description = client.get_model_version(manual.registered_model, "2").description
    assert str(description).startswith("> Approved by ann\n\nPassed the gate: ")


def test_only_a_version_that_passed_the_gate_can_be_approved(manual: Recipe, judged: judging.Judgement) -> None:
    with pytest.raises(review.ReviewError, match="version 1 of digits-mobilenet does not wait for approval"):
        review.approve(manual, "1", "ann")


def test_no_run_promotes_a_rejected_version(make: Make, recipe: Recipe, run: Run) -> None:
    make("scratch", right=181)
    make("pretrained", right=195)
    judging.judge(recipe)
    for _ in range(2):
        review.reject(recipe, "2", "the photos are not ours", "ann")
    assert "scratch is promoted" in run()
    assert events(recipe) == [("rejected", "2", None, None), ("promoted", "1", None, "1")]
    assert "rejected by ann: the photos are not ours" in judging.read_verdict(recipe).reason


def test_the_champion_cannot_be_rejected(recipe: Recipe, champions: None) -> None:
    with pytest.raises(review.ReviewError, match="version 4 of digits-mobilenet is champion: `mobilenet-pipeline roll"):
        review.reject(recipe, "4", "slow", "ann")


def test_a_rejected_challenger_is_no_longer_served(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    challenger = number_of(aliases.with_alias(recipe.registered_model, "challenger"))
    assert challenger is not None
    review.reject(recipe, challenger, "odd", "ann")
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions == {"champion": "4", "challenger": None}


def test_a_rollback_restores_the_previous_champion(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    assert "Version 2 of digits-mobilenet is champion, version 4" in review.rollback(recipe, None, "slow", "ann")
    assert (champion(recipe), served(recipe, packaging)) == ("2", "2")
    assert events(recipe)[-1] == ("rolled back", "2", "4", "2")
    assert withdrawn(recipe, "4") == "rolled back by ann: slow"


def test_the_next_run_does_not_promote_a_withdrawn_version(recipe: Recipe, champions: None, run: Run) -> None:
    review.rollback(recipe, None, "slow", "ann")
    assert run().startswith(("The champion stays", "Nothing is promoted"))
    assert champion(recipe) == "2"


def test_descriptions_begin_with_the_last_decision(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    def first_line(number: str) -> str:
        return str(client.get_model_version(recipe.registered_model, number).description).splitlines()[0]

    review.reject(recipe, "1", "odd", "ann")
    review.rollback(recipe, None, "slow", "ann")
    assert first_line("1") == "> Withdrawn: rejected by ann: odd"
    assert first_line("2") == "> Champion: rolled back by ann: slow"
    assert first_line("4") == "> Withdrawn: rolled back by ann: slow"
    review.rollback(recipe, "4", "it was the network", "ann")
    assert first_line("4") == "> Champion: rolled back by ann: it was the network"
    description = client.get_model_version(recipe.registered_model, "4").description
    assert "Promoted: " in description
    assert description.count("> ") == 1


def test_a_rollback_killed_before_its_record_is_described_by_the_next(
    recipe: Recipe, champions: None, client: mlflow.MlflowClient
) -> None:
    aliases.set_alias(recipe.registered_model, "champion", "2")
    review.rollback(recipe, "2", "slow", "ann")
    description = client.get_model_version(recipe.registered_model, "2").description
    assert str(description).startswith("> Champion: rolled back by ann: slow\n")


def test_a_repeated_rollback_changes_nothing(recipe: Recipe, champions: None, packaging: Packaging) -> None:
    review.rollback(recipe, "2", "slow", "ann")
    built = len(packaging.bentos)
    assert review.rollback(recipe, "2", "slow", "ann") == "Version 2 of digits-mobilenet is champion already."
    assert (len(packaging.bentos), len(events(recipe))) == (built, 3)


def test_a_second_rollback_needs_a_version(recipe: Recipe, champions: None) -> None:
    review.rollback(recipe, None, "slow", "ann")
    with pytest.raises(review.ReviewError, match=r"version 4, which was rolled back by ann: slow; name a version"):
        review.rollback(recipe, None, "slower", "ann")
    assert "Version 4" in review.rollback(recipe, "4", "it was the network", "ann")
    assert withdrawn(recipe, "4") is None


@pytest.mark.parametrize("point", ["package", "check", "previous", "champion", "put_live", "append"])
def test_a_killed_rollback_is_completed_by_the_next(
    point: str, recipe: Recipe, champions: None, packaging: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_alias = aliases.set_alias
    with monkeypatch.context() as patch:
        if point == "append":
            patch.setattr(history, point, interrupt)
        elif point in ("previous", "champion"):
            patch.setattr(
                aliases, "set_alias", lambda n, alias, v: interrupt() if alias == point else set_alias(n, alias, v)
            )
        else:
            patch.setattr(packaging, point, interrupt)
        with pytest.raises(KeyboardInterrupt):
            review.rollback(recipe, None, "slow", "ann")
    review.rollback(recipe, None, "slow", "ann")
    assert (champion(recipe), served(recipe, packaging)) == ("2", "2")
    assert events(recipe)[-1] == ("rolled back", "2", "4", "2")
    assert withdrawn(recipe, "4")


def test_a_rollback_after_a_moved_alias_restores_the_recorded_champion(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    aliases.set_alias(recipe.registered_model, "champion", "1")
    assert "Version 4" in review.rollback(recipe, None, "slow", "ann")
    assert (champion(recipe), served(recipe, packaging)) == ("4", "4")
    assert withdrawn(recipe, "1") == "rolled back by ann: slow"


def test_a_rollback_that_cannot_be_served_changes_nothing(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        review.rollback(recipe, None, "slow", "ann")
    assert (champion(recipe), withdrawn(recipe, "4")) == ("4", None)
    assert len(events(recipe)) == 2


def test_a_rollback_that_fails_leaves_a_rejected_version_rejected(
    recipe: Recipe, champions: None, packaging: Packaging
) -> None:
    review.reject(recipe, "1", "odd", "ann")
    packaging.broken = True
    with pytest.raises(RuntimeError, match="does not answer"):
        review.rollback(recipe, "1", "slow", "ann")
    assert withdrawn(recipe, "1") == "rejected by ann: odd"


def test_no_run_undoes_a_rollback_that_failed_after_its_alias(
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


def test_an_alias_that_moves_during_a_rollback_stays(
    recipe: Recipe, champions: None, packaging: Packaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "check", lambda *_: aliases.set_alias(recipe.registered_model, "champion", "1"))
    expected = r"was moved to version 1 while version 2 was checked; .*The alias stays there; version 4 is withdrawn"
    with pytest.raises(review.ReviewError, match=expected):
        review.rollback(recipe, None, "slow", "ann")
    assert champion(recipe) == "1"
    assert withdrawn(recipe, "4") == "rolled back by ann: slow"


def test_a_lost_registry_has_no_previous_champion(
    store: Path, migrated: Path, recipe: Recipe, champions: None, run: Run
) -> None:
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    identity.start_new(recipe)
    run()
    assert events(recipe)[-1] == ("promoted", "2", None, "2")
    with pytest.raises(review.ReviewError, match="had no champion before version 2"):
        review.rollback(recipe, None, "slow", "ann")


def test_a_version_of_another_registry_is_not_the_recorded_champion(
    store: Path, migrated: Path, recipe: Recipe, champions: None, run: Run
) -> None:
    earlier = paths.history_path(recipe).read_text().splitlines(keepends=True)[0]
    (store / "mlflow.db").write_bytes(migrated.read_bytes())
    identity.start_new(recipe)
    run()
    paths.history_path(recipe).write_text(earlier)
    with pytest.raises(review.ReviewError, match=r"version 2 is not the recorded champion; name a version with --to"):
        review.rollback(recipe, None, "slow", "ann")


def test_after_the_first_promotion_there_is_nothing_to_roll_back_to(recipe: Recipe, runs: Runs) -> None:
    runs((181, 195))
    with pytest.raises(review.ReviewError, match="had no champion before version 2"):
        review.rollback(recipe, None, "slow", "ann")


def test_an_unknown_version_is_refused_with_the_known_ones(recipe: Recipe, champions: None) -> None:
    with pytest.raises(versions.RegistryError, match="no version 9; there are: 4, 3, 2, 1"):
        review.rollback(recipe, "9", "slow", "ann")


def test_a_second_rejection_after_a_person_wanted_the_version_back_is_recorded(
    make: Make, recipe: Recipe, champions: None
) -> None:
    review.reject(recipe, "3", "odd", "ann")
    review.rollback(recipe, "3", "not odd at all", "bob")
    make("pretrained", right=199)
    promotion.promote(recipe, judging.judge(recipe))
    review.reject(recipe, "3", "odd after all", "ann")
    assert versions.find(recipe.registered_model, "3").sha256 in history.withdrawn(recipe)


@pytest.mark.parametrize("decide", [review.rollback, review.reject])
def test_a_decision_that_cannot_be_recorded_is_not_applied(
    recipe: Recipe, champions: None, packaging: Packaging, decide: Callable[..., str]
) -> None:
    record, before = paths.history_path(recipe), packaging.live(recipe)
    record.write_text(f'{record.read_text()}{{"what": "rol')
    with pytest.raises(history.HistoryError, match="line 3 is damaged"):
        decide(recipe, "1", "odd", "ann")
    assert (champion(recipe), packaging.live(recipe)) == ("4", before)
    assert [withdrawn(recipe, number) for number in ("1", "4")] == [None, None]


def test_an_alias_moved_by_hand_is_found_not_promoted(recipe: Recipe, champions: None) -> None:
    aliases.set_alias(recipe.registered_model, "champion", "2")
    state = aliases.read_state(recipe.registered_model)
    assert state.champion is not None
    promotion.settle(recipe, state, "found", state.champion, "the alias was moved", "the pipeline")
    assert events(recipe)[-1] == ("found", "2", "4", "2")


def test_an_approval_does_not_need_the_former_champion_s_decoder(manual: Recipe, decoded_otherwise: None) -> None:
    assert (champion(manual), number_of(judging.judge(manual).champion)) == ("2", "4")
    assert review.approve(manual, "4", "ann") == "Version 4 of digits-mobilenet is champion."


def test_while_a_version_waits_the_lost_bento_is_built_again(
    make: Make, runs: Runs, manual: Recipe, packaging: Packaging
) -> None:
    runs((181, 183))
    make("scratch", right=182)
    make("pretrained", right=195)
    judgement = judging.judge(manual)
    packaging.pointer = None
    assert training.apply(manual, judgement) is judgement
    assert (served(manual, packaging), number_of(judgement.champion)) == ("2", "4")


def test_a_review_shows_the_champion_s_card_and_verdict(recipe: Recipe, champions: None) -> None:
    card, verdict = review.show(recipe, None)
    assert card.startswith("# Promoted: pretrained, version 4")
    assert verdict.versions == {"scratch": "3", "pretrained": "4"}


def test_a_review_before_the_first_run_says_what_to_do(recipe: Recipe) -> None:
    with pytest.raises(review.ReviewError, match="has no versions yet: `mobilenet-pipeline run --recipe digits`"):
        review.show(recipe, None)


def test_a_decision_is_published_in_results_and_report(recipe: Recipe, complete: None) -> None:
    review.rollback(recipe, None, "slow", "ann")
    assert review.publish(recipe) is None
    assert files.read_json(results.results_path(recipe)) == {"champion": "2", "date": "that of the run"}
    page = (paths.report_folder(recipe) / "index.html").read_text(encoding="utf-8")
    assert ">Version 2 is champion again</h1>" in page


def test_a_report_without_all_files_stays_as_it_was(recipe: Recipe, complete: None) -> None:
    page = paths.report_folder(recipe) / "index.html"
    page.write_text("earlier")
    paths.model_folder(recipe, "scratch").joinpath("history.csv").unlink()
    assert review.publish(recipe) == (
        "reports/digits/index.html does not show this yet (not in this workspace: models/digits/scratch/history.csv); "
        "`mobilenet-pipeline run --recipe digits` writes it."
    )
    assert page.read_text() == "earlier"


def test_a_decision_without_results_is_not_published(recipe: Recipe, complete: None) -> None:
    results.results_path(recipe).unlink()
    assert "does not show this yet (reports/digits/results.json does not exist" in str(review.publish(recipe))


def test_the_command_of_a_decision_publishes_it(
    recipe: Recipe, complete: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(review, "publish", lambda recipe: f"the report of {recipe.name} lacks a file.")
    assert cli.main(["reject", "1", "--reason", "odd"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Version 1 of digits-mobilenet is rejected; no run will promote it.",
        "the report of digits lacks a file.",
    ]


def test_commands_approve_review_and_roll_back(
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
        number = str(number_of(judging.judge(manual).champion))
        assert cli.main(["approve", number]) == 0
        capsys.readouterr()
        assert cli.main(["review", "--json"]) == 0
        verdict = json.loads(capsys.readouterr().out)
        assert (verdict["promote"], verdict["versions"]["pretrained"]) == (True, number)
    assert cli.main(["rollback", "--reason", "slow"]) == 0
    assert "Version 2 of digits-mobilenet is champion, version 4 is withdrawn." in capsys.readouterr().out
    assert champion(manual) == "2"


def test_a_redirected_review_is_plain_markdown(
    recipe: Recipe, champions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["review"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Promoted: pretrained, version 4")
    assert "\x1b" not in printed


def test_a_redirected_status_has_no_escape_codes(
    recipe: Recipe, champions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("champion    version 4, pretrained, test accuracy 97.50%")
    assert "\x1b" not in printed


def test_a_withdrawal_outlives_its_version(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    review.rollback(recipe, None, "cats look odd", "ann")
    client.delete_model_version(recipe.registered_model, "4")
    assert "pretrained is withdrawn: rolled back by ann: cats look odd" in run()
    assert champion(recipe) == "2"


def test_a_withdrawal_outlives_the_registry(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    review.rollback(recipe, None, "cats look odd", "ann")
    client.delete_registered_model(recipe.registered_model)
    identity.start_new(recipe)
    assert run().startswith("scratch is promoted")
    assert withdrawn(recipe, "2") == "rolled back by ann: cats look odd"  # pretrained, registered again


def test_a_rejection_outlives_the_registry(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    review.reject(recipe, "3", "too slow", "ann")
    client.delete_registered_model(recipe.registered_model)
    identity.start_new(recipe)
    assert "scratch is withdrawn: rejected by ann: too slow" in run()


def test_a_withdrawal_made_in_the_registry_is_recorded(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    client.set_model_version_tag(recipe.registered_model, "3", "withdrawn", "too slow")
    run()
    last = history.read(recipe)[-1]
    assert (last.what, last.version, last.who, last.why) == ("rejected", "3", "someone in the registry", "too slow")


def test_a_removed_tag_does_not_take_back_a_withdrawal(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    review.rollback(recipe, None, "cats look odd", "ann")
    client.delete_model_version_tag(recipe.registered_model, "4", "withdrawn")
    run()
    assert (champion(recipe), withdrawn(recipe, "4")) == ("2", "rolled back by ann: cats look odd")


def test_a_rollback_to_a_withdrawn_version_takes_the_withdrawal_back(recipe: Recipe, champions: None) -> None:
    review.rollback(recipe, None, "cats look odd", "ann")
    review.rollback(recipe, "4", "it was the light", "ann")
    assert [*history.withdrawn(recipe).values()] == ["rolled back by ann: it was the light"]
    assert (withdrawn(recipe, "2"), withdrawn(recipe, "4")) == ("rolled back by ann: it was the light", None)


def test_a_champion_by_hand_is_called_champion_by_the_registry(
    recipe: Recipe, champions: None, run: Run, client: mlflow.MlflowClient
) -> None:
    client.set_registered_model_alias(recipe.registered_model, "champion", "1")
    review.reject(recipe, "4", "it is better", "ann")
    run()
    version = client.get_model_version(recipe.registered_model, "1")
    assert version.description.startswith("> Champion: its alias was moved in the registry")
    assert version.tags["verdict"] == "adopted"
