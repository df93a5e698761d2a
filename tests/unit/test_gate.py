import json

import numpy as np
import pytest

from mobilenet_pipeline import config, gate

LIMITS = config.Gate(accuracy_floor=0.7, significance=0.05)
LABELS = np.arange(200, dtype=np.uint8) % 10


def answers(right: np.ndarray, sure: float = 0.9, **changes: object) -> gate.Predictions:
    """Predictions that are right where `right` (n,) is True, with probability `sure` for the answer given."""
    answer = np.where(right, LABELS[: len(right)], (LABELS[: len(right)] + 1) % 10)
    probabilities = np.full((len(right), 10), (1 - sure) / 9, np.float32)
    probabilities[np.arange(len(right)), answer] = sure
    values = {"labels": LABELS[: len(right)], "data_digest": "d1", "version": None, **changes}
    return gate.Predictions(probabilities, **values)


def accurate(count: int, **changes: object) -> gate.Predictions:
    return answers(np.arange(200) < count, **changes)


def decide(scratch: gate.Predictions, pretrained: gate.Predictions, champion: gate.Predictions | None) -> gate.Verdict:
    return gate.decide({"scratch": scratch, "pretrained": pretrained}, champion, LIMITS)


def test_without_a_champion_the_best_candidate_is_promoted() -> None:
    verdict = decide(accurate(150), accurate(160), None)
    assert (verdict.promote, verdict.winner) == (True, "pretrained")
    assert "no champion yet" in verdict.reason


def test_a_candidate_below_the_floor_is_out_and_the_other_may_go_on() -> None:
    verdict = decide(accurate(100), accurate(160), None)
    assert (verdict.promote, verdict.winner) == (True, "pretrained")
    assert "scratch is at 50.00%, below the floor of 70%" in verdict.reason


def test_nothing_is_promoted_when_no_candidate_reaches_the_floor() -> None:
    verdict = decide(accurate(100), accurate(139), None)
    assert (verdict.promote, verdict.winner) == (False, None)
    assert "Nothing is promoted" in verdict.reason


def test_an_accuracy_equal_to_the_floor_passes() -> None:
    assert decide(accurate(140), accurate(100), None).candidates["scratch"].passes_floor


def test_a_clear_gain_over_the_champion_is_promoted() -> None:
    verdict = decide(accurate(150), accurate(190), accurate(150, version="3"))
    assert verdict.promote
    assert "champion (version 3)" in verdict.reason


def test_a_gain_that_chance_explains_is_not_promoted() -> None:
    verdict = decide(accurate(150), accurate(154), accurate(150))
    assert verdict.winner == "pretrained"
    assert not verdict.promote
    assert verdict.comparison is not None
    assert verdict.comparison.p_value == 0.5**4


def test_five_images_gained_and_none_lost_are_just_enough() -> None:
    verdict = decide(accurate(150), accurate(155), accurate(150))
    assert verdict.promote
    assert verdict.comparison == gate.Comparison(5, 0, pytest.approx(0.5**5), 0.05)


def test_a_p_value_equal_to_the_significance_is_not_enough() -> None:
    limits = config.Gate(accuracy_floor=0.7, significance=0.5**5)
    candidates = {"scratch": accurate(150), "pretrained": accurate(155)}
    assert not gate.decide(candidates, accurate(150), limits).promote


def test_a_worse_candidate_is_never_promoted() -> None:
    verdict = decide(accurate(150), accurate(160), accurate(195))
    assert not verdict.promote
    assert "The champion stays" in verdict.reason


def test_the_champion_itself_is_not_promoted_again() -> None:
    verdict = decide(accurate(150), accurate(160), accurate(160, version="3"))
    assert not verdict.promote
    assert "pretrained is the champion (version 3) itself" in verdict.reason


def test_between_equal_accuracies_the_lower_loss_wins() -> None:
    assert decide(accurate(160, sure=0.6), accurate(160, sure=0.8), None).winner == "pretrained"


def test_between_equal_accuracies_and_losses_scratch_wins() -> None:
    assert decide(accurate(160), accurate(160), None).winner == "scratch"


@pytest.mark.parametrize(
    ("champion", "message"),
    [
        (accurate(150, data_digest="d2"), "the champion are of data d2"),
        (accurate(150, data_digest=""), "without a digest"),
        (accurate(150, labels=LABELS[::-1].copy()), "the champion have other labels"),
        (answers(np.ones(100, bool)), "100, 10"),
    ],
)
def test_a_champion_of_other_test_images_is_refused(champion: gate.Predictions, message: str) -> None:
    with pytest.raises(gate.GateError, match=message):
        decide(accurate(150), accurate(199), champion)


def test_candidates_of_different_data_are_refused() -> None:
    with pytest.raises(gate.GateError, match="pretrained are of data d2"):
        decide(accurate(150), accurate(199, data_digest="d2"), None)


def test_a_missing_candidate_is_refused_by_name() -> None:
    with pytest.raises(gate.GateError, match="no predictions of candidate scratch"):
        gate.decide({"pretrained": accurate(199)}, None, LIMITS)


def test_an_unknown_candidate_is_refused_by_name() -> None:
    candidates = {"scratch": accurate(150), "pretrained": accurate(150), "guess": accurate(199)}
    with pytest.raises(gate.GateError, match="guess"):
        gate.decide(candidates, None, LIMITS)


def test_predictions_with_nan_are_refused() -> None:
    broken = accurate(199)
    broken.probabilities[7] = np.nan
    with pytest.raises(gate.GateError, match=r"pretrained cannot be scored: .*row 7"):
        decide(accurate(150), broken, None)


def test_the_verdict_is_one_json_document_with_every_number() -> None:
    document = json.loads(json.dumps(decide(accurate(100), accurate(190), accurate(150, version="3")).to_dict()))
    assert document["candidates"]["pretrained"]["accuracy"] == 0.95
    assert document["champion"] == {"version": "3", "accuracy": 0.75}
    assert [check["passed"] for check in document["checks"]] == [False, True, True, True]
    assert (document["data_digest"], document["test_rows"]) == ("d1", 200)


def test_at_most_5_in_100_models_no_better_than_the_champion_are_promoted() -> None:
    rng = np.random.default_rng(0)
    draws = [
        gate.compare(answers(rng.random(200) < 0.8), answers(rng.random(200) < 0.8), 0.05).p_value < 0.05
        for _ in range(300)
    ]
    assert 0 < sum(draws) <= 15


def test_a_large_planted_gain_is_nearly_always_promoted() -> None:
    rng = np.random.default_rng(0)
    promoted = [
        decide(accurate(100), answers(rng.random(200) < 0.95), answers(rng.random(200) < 0.8)).promote
        for _ in range(50)
    ]
    assert sum(promoted) >= 48


def test_a_p_value_too_small_for_a_float_is_not_called_zero():
    labels = np.zeros(5000, np.int64)
    right, wrong = np.tile([0.9, 0.1], (5000, 1)), np.tile([0.1, 0.9], (5000, 1))
    limits = config.Gate(accuracy_floor=0.5, significance=0.05)
    better, champion = (gate.Predictions(p.astype(np.float32), labels, "d") for p in (right, wrong))
    verdict = gate.decide({"scratch": better, "pretrained": better}, champion, limits)
    assert "p < 1e-300" in verdict.reason
