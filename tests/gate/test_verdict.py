"""Decisions on planted predictions, and the verdict's file."""

import json

import numpy as np
import pytest
from planted_predictions import (
    FREE,
    LIGHTER,
    LIMITS,
    ROBUST,
    accurate,
    answers,
    decide,
    drawn,
    facts,
    usage,
    verdict_on,
)

from mobilenet_pipeline.evaluation.predictions import Predictions
from mobilenet_pipeline.gate import verdict
from mobilenet_pipeline.gate.verdict import GateError, Verdict
from mobilenet_pipeline.metrics import spending

LABELS = np.arange(200, dtype=np.uint8) % 10


def test_the_best_candidate_is_promoted_without_a_champion() -> None:
    decision = decide(accurate(150), accurate(160), None)
    assert (decision.promote, decision.winner) == (True, "pretrained")
    assert "no champion to keep" in decision.reason


def test_a_candidate_below_the_floor_leaves_the_other_one_in() -> None:
    decision = decide(accurate(100), accurate(160), None)
    assert (decision.promote, decision.winner) == (True, "pretrained")
    assert "scratch has 50.00% accuracy on 200 test images" in decision.reason


def test_nothing_is_promoted_if_all_are_below_the_floor() -> None:
    decision = decide(accurate(100), accurate(119), None)
    assert (decision.promote, decision.winner) == (False, None)
    assert "Nothing is promoted" in decision.reason


def test_a_clear_gain_over_the_champion_is_promoted() -> None:
    decision = decide(accurate(150), accurate(190), accurate(150, version="3"))
    assert decision.promote
    assert "champion (version 3)" in decision.reason


def test_a_worse_candidate_is_never_promoted() -> None:
    decision = decide(accurate(150), accurate(160), accurate(195))
    assert not decision.promote
    assert "The champion stays" in decision.reason


def test_the_champion_itself_is_not_promoted_again() -> None:
    decision = decide(accurate(150), accurate(160), accurate(160, version="3"))
    assert not decision.promote
    assert "pretrained is the champion (version 3) itself" in decision.reason


def test_the_lower_loss_wins_between_equal_accuracies() -> None:
    assert decide(accurate(160, sure=0.6), accurate(160, sure=0.8), None).winner == "pretrained"


def test_scratch_wins_between_equals() -> None:
    assert decide(accurate(160), accurate(160), None).winner == "scratch"


def test_a_champion_that_cannot_be_served_is_in_the_reason() -> None:
    candidates = {"scratch": accurate(150), "pretrained": accurate(160)}
    decision = verdict.decide(candidates, None, LIMITS, "p1", usage(), unservable="7")
    assert decision.promote
    assert "no champion to keep: version 7 " in decision.reason


def test_a_verdict_says_what_is_left_of_the_budget() -> None:
    decision = decide(accurate(150), accurate(160), accurate(150), comparisons=8)
    assert decision.budget_left == spending.left(10)


def test_half_of_the_budget_spent_is_a_warning() -> None:
    early, late = (decide(accurate(150), accurate(160), accurate(150), comparisons=made) for made in (300, 400))
    assert early.warning is None
    assert str(late.warning).startswith("After 402 comparisons on these test images, 47% of their error budget is left")


def test_a_champion_measured_on_other_corruptions_is_refused() -> None:
    other = facts(corrupted={"fog 1": ROBUST["noise 1"]})
    with pytest.raises(GateError, match="the champion was not measured on the corruptions"):
        decide(accurate(150), accurate(190), accurate(150, facts=other))


def test_a_champion_measured_on_fewer_corrupted_images_is_refused() -> None:
    other = facts(corrupted={name: right[:100] for name, right in ROBUST.items()})
    with pytest.raises(GateError, match="the champion was not measured on the corrupted images"):
        decide(accurate(150), accurate(190), accurate(150, facts=other))


@pytest.mark.parametrize(
    ("champion", "message"),
    [
        (accurate(150, data_digest="d2"), "the champion are of data d2"),
        (accurate(150, data_digest=""), "without a digest"),
        (accurate(150, labels=LABELS[::-1].copy()), "the champion have other labels"),
        (answers(np.ones(100, bool)), "100, 10"),
    ],
)
def test_a_champion_of_other_test_images_is_refused(champion: Predictions, message: str) -> None:
    with pytest.raises(GateError, match=message):
        decide(accurate(150), accurate(199), champion)


def test_candidates_of_different_data_are_refused() -> None:
    with pytest.raises(GateError, match="pretrained are of data d2"):
        decide(accurate(150), accurate(199, data_digest="d2"), None)


@pytest.mark.parametrize("count", [1, 5])
def test_the_best_of_any_number_of_candidates_wins(count: int) -> None:
    candidates = {f"net_{number}": accurate(150 + number) for number in range(count)}
    assert verdict.decide(candidates, None, LIMITS, "p1", usage()).winner == f"net_{count - 1}"


def test_no_candidates_at_all_are_refused() -> None:
    with pytest.raises(GateError, match="no candidates"):
        verdict.decide({}, None, LIMITS, "p1", usage())


def test_predictions_with_nan_are_refused() -> None:
    broken = accurate(199)
    broken.probabilities[7] = np.nan
    with pytest.raises(GateError, match=r"pretrained cannot be scored: .*row 7"):
        decide(accurate(150), broken, None)


def test_few_equally_good_models_are_promoted_in_their_first_night() -> None:
    # The levels of the first two comparisons are 0.0021 and 0.0007.
    rng = np.random.default_rng(0)
    promoted = 0
    for _ in range(500):
        champion, *candidates = drawn(rng, 1000, 0.7, 0.9, 0.9, 0.9)
        promoted += decide(*map(answers, candidates), answers(champion), FREE).promote
    assert promoted <= 4


@pytest.mark.parametrize(("comparisons", "share"), [(0, 0.95), (728, 0.9)])
def test_one_more_point_of_accuracy_is_promoted_for_a_year(comparisons: int, share: float) -> None:
    # 10,000 images, 93 and 94 % right, and the two differ on about 4 % of the images, as two good models do.
    rng = np.random.default_rng(0)
    promoted = 0
    for _ in range(100):
        champion, worse, better = drawn(rng, 10_000, 0.8, 0.93, 0.93, 0.94)
        decision = decide(answers(worse), answers(better), answers(champion), FREE, comparisons)
        promoted += decision.promote
    assert promoted >= share * 100


def test_verdict_json_has_every_number() -> None:
    document = json.loads(verdict_on(decide(accurate(100), accurate(190), accurate(150, version="3"))).to_json())
    assert document["candidates"]["pretrained"]["accuracy"] == 0.95
    assert (document["champion"]["version"], document["champion"]["accuracy"]) == ("3", 0.75)
    assert [check["name"] for check in document["checks"] if not check["passed"]] == ["accuracy"]
    assert (document["data_digest"], document["test_rows"]) == ("d1", 200)


def test_verdict_json_has_both_times() -> None:
    right = np.resize(np.arange(100) < 80, 10_000)
    light, other = (answers(right, sure, facts=facts(in_turn_ms=ms)) for sure, ms in ((0.79, 0.7), (0.8, 1.0)))
    decision = decide(other, light, other, LIGHTER)
    assert json.loads(verdict_on(decision).to_json())["comparison"]["milliseconds"] == [0.7, 1.0]


@pytest.mark.parametrize("champion", [None, accurate(150, version="3")], ids=["no champion", "a champion"])
def test_a_verdict_comes_back_from_its_text(champion: Predictions | None) -> None:
    made = verdict_on(decide(accurate(150), accurate(190), champion))
    loaded = Verdict.from_json(made.to_json(), "verdict.json")
    assert loaded == made
    assert loaded.to_json() == made.to_json()


def test_a_verdict_of_an_earlier_release_has_no_coverage() -> None:
    document = json.loads(verdict_on(decide(accurate(150), accurate(160), None)).to_json())
    del document["limits"]["coverage"]
    assert Verdict.from_json(json.dumps(document), "verdict.json").limits.coverage is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"promote": true}', "\x00"])
def test_a_text_that_is_no_verdict_is_refused_with_its_source(text: str) -> None:
    with pytest.raises(GateError, match=r"^reports/digits/verdict\.json is not a verdict .*run the recipe again"):
        Verdict.from_json(text, "reports/digits/verdict.json")


def test_a_verdict_promotes_its_winner_only() -> None:
    made = verdict_on(decide(accurate(150), accurate(190), None))
    assert [made.promotes(name) for name in ("scratch", "pretrained")] == [False, True]


def test_a_verdict_that_promotes_nothing_promotes_no_winner() -> None:
    made = verdict_on(decide(accurate(150), accurate(160), accurate(195)))
    assert made.winner == "pretrained"
    assert not made.promotes("pretrained")
