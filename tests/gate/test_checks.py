"""The checks of a candidate, each with the fault that it must notice."""

from statistics import NormalDist

import numpy as np
import pytest
from planted_predictions import (
    FREE,
    LIGHTER,
    LIMITS,
    ROBUST,
    accurate,
    answers,
    check_of,
    decide,
    drawn,
    facts,
    failed,
)

from mobilenet_pipeline.evaluation.predictions import Facts, Predictions
from mobilenet_pipeline.gate import checks
from mobilenet_pipeline.metrics import spending


def test_the_floor_is_for_the_lower_bound_of_the_accuracy() -> None:
    # 133 of 200 are 66.5 %, at least 59.7 % with 95 % confidence; of 134 it is 60.2 %.
    standings = decide(accurate(133), accurate(134), None).candidates
    assert [standings[name].eligible for name in ("scratch", "pretrained")] == [False, True]
    assert standings["scratch"].low < 0.6 <= standings["pretrained"].low


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"bytes": 10_100_000}, "size"),
        ({"p99_ms": 5.1}, "latency"),
        ({"overlap": 3}, "unseen test images"),
        ({"preprocessing": "p0"}, "preprocessing"),
        ({"withdrawn": "it is slow"}, "not withdrawn"),
    ],
)
def test_a_candidate_that_misses_a_limit_of_its_own_is_out(changes: dict, name: str) -> None:
    decision = decide(accurate(190, facts=facts(**changes)), accurate(160), None)
    assert (decision.winner, failed(decision)) == ("pretrained", [("scratch", name)])


def test_an_overconfident_candidate_is_out() -> None:
    shuffled = np.random.default_rng(0).permutation(200) < 160
    strict = LIMITS.model_copy(update={"calibration_error": 0.1})
    decision = decide(answers(shuffled, sure=0.99), accurate(130, sure=0.65), None, strict)
    assert ("scratch", "calibration") in failed(decision)


def uncertain(covering: int, rows: int = 200) -> Predictions:
    """Return predictions of which `covering` give their class at least 0.4, and the others 0.2."""
    labels = (np.arange(rows) % 2).astype(np.uint8)
    own = np.where(np.arange(rows) < covering, 0.4, 0.2)
    probabilities = np.where(labels[:, None] == [0, 1], own[:, None], 1 - own[:, None]).astype(np.float32)
    return Predictions(probabilities, labels, "d1", facts(set_threshold=0.39))


def coverage(predictions: Predictions, stated: float | None = 0.95) -> list[checks.Check]:
    limits = LIMITS.model_copy(update={"coverage": stated})
    return [check for check in checks.own_checks("scratch", predictions, limits, "p1") if check.name == "coverage"]


@pytest.mark.parametrize(("covering", "passed"), [(182, False), (184, True), (190, True), (200, True)])
def test_only_a_significant_lack_of_coverage_fails(covering: int, passed: bool) -> None:
    (check,) = coverage(uncertain(covering))
    assert (check.passed, check.number) == (passed, covering / 200)


def test_the_coverage_s_sentence_has_its_interval_and_the_size_of_the_sets() -> None:
    sentence = coverage(uncertain(180))[0].sentence
    assert "90.00% of 200 test images (95 % interval 85.06% to 93.43%)" in sentence
    assert "1.90 classes on average; 95 % are stated" in sentence


def test_a_candidate_without_prediction_sets_is_out() -> None:
    (check,) = coverage(accurate(190, facts=facts(set_threshold=None)))
    assert not check.passed
    assert "evaluate it again" in check.sentence


def test_a_recipe_without_prediction_sets_has_no_check_of_them() -> None:
    assert coverage(accurate(190), None) == []


def test_a_champion_without_prediction_sets_is_compared() -> None:
    champion = accurate(150, facts=facts(set_threshold=None), version="1")
    assert decide(accurate(140), accurate(190), champion).promote


def test_a_sentence_has_the_number_and_the_limit() -> None:
    own = checks.own_checks("scratch", accurate(190, facts=facts(p99_ms=5.1)), LIMITS, "p1")
    latency = next(check for check in own if check.name == "latency")
    assert (latency.number, latency.limit) == (5.1, 5)
    assert latency.sentence.startswith("scratch ")
    assert "5.10 ms" in latency.sentence
    assert "5 ms" in latency.sentence


def test_why_a_version_is_withdrawn_is_in_the_sentence() -> None:
    decision = decide(accurate(190, facts=facts(withdrawn="it is slow")), accurate(160), None)
    assert "it is slow" in check_of(decision, "scratch", "not withdrawn").sentence


def test_both_fingerprints_of_other_preprocessing_are_named() -> None:
    decision = decide(accurate(190, facts=facts(preprocessing="p0")), accurate(160), None)
    sentence = check_of(decision, "scratch", "preprocessing").sentence
    assert "p0" in sentence
    assert "p1" in sentence


def test_a_gain_that_chance_explains_is_not_promoted() -> None:
    decision = decide(accurate(150), accurate(154), accurate(150))
    assert decision.winner == "pretrained"
    assert not decision.promote
    assert decision.comparison is not None
    assert decision.comparison.p_value == 0.5**4


def test_eleven_images_gained_and_none_lost_are_just_enough_in_the_second_comparison() -> None:
    # 0.05 × (0.08 / (2 × 3) + 0.82 / 730) = 0.00072 lies between 1 / 2^11 and 1 / 2^10.
    assert not decide(accurate(100), accurate(160), accurate(150)).promote
    decision = decide(accurate(100), accurate(161), accurate(150))
    assert decision.promote
    assert decision.comparison is not None
    assert (decision.comparison.only_candidate_right, decision.comparison.only_champion_right) == (11, 0)
    assert decision.comparison.p_value == pytest.approx(0.5**11)
    assert (decision.comparison.number, decision.comparison.level) == (2, pytest.approx(0.000723, abs=1e-6))


def test_the_same_gain_is_not_enough_after_ten_comparisons() -> None:
    assert not decide(accurate(100), accurate(161), accurate(150), comparisons=10).promote


def test_the_sentence_has_level_and_number_of_the_comparison() -> None:
    sentence = check_of(decide(accurate(100), accurate(161), accurate(150)), "pretrained", checks.BETTER).sentence
    assert "must be below 0.00072 in comparison 2 on these test images" in sentence


def test_a_p_value_equal_to_the_level_is_not_enough() -> None:
    level = spending.level(1.0, 2)
    limits = LIMITS.model_copy(update={"significance": 0.5**11 / level})
    assert not decide(accurate(100), accurate(161), accurate(150), limits).promote


def test_a_p_value_too_small_for_a_float_is_not_called_zero() -> None:
    right = np.ones(5000, bool)
    decision = decide(answers(right), answers(right), answers(~right))
    assert "p < 1e-300" in decision.reason


def test_being_lighter_is_not_enough_without_the_rule() -> None:
    light = accurate(160, sure=0.81, facts=facts(bytes=500_000))
    assert failed(decide(accurate(100), light, accurate(160)))[1:] == [("pretrained", checks.BETTER)]


def big(right: np.ndarray, **changes: object) -> Predictions:
    return answers(np.resize(right, 10_000), **changes)


def test_as_good_and_lighter_is_promoted_where_the_recipe_says_so() -> None:
    right = np.arange(100) < 80
    light, other = (big(right, sure=sure, facts=facts(in_turn_ms=ms)) for sure, ms in ((0.79, 0.7), (0.8, 1.0)))
    decision = decide(big(right), light, other, LIGHTER)
    assert (decision.promote, decision.winner) == (True, "pretrained")
    assert all(number in decision.reason for number in ("0.700 ms", "1.000 ms", "30%", "20%"))


def test_times_that_were_not_measured_in_turn_save_nothing() -> None:
    right = np.arange(100) < 80
    decision = decide(big(right), big(right, sure=0.79, facts=facts(p50_ms=0.1)), big(right), LIGHTER)
    assert not decision.promote
    assert "not timed in turn" in decision.reason
    assert "saves 0%" in decision.reason


@pytest.mark.parametrize("changes", [{"bytes": 900_000}, {"in_turn_ms": 0.9}])
def test_saving_too_little_is_not_enough(changes: dict) -> None:
    right = np.arange(100) < 80
    champion = big(right, facts=facts(in_turn_ms=1.0))
    decision = decide(big(right), big(right, sure=0.79, facts=facts(**changes)), champion, LIGHTER)
    assert ("pretrained", checks.AS_GOOD) in failed(decision)
    assert not decision.promote


def test_half_a_point_less_accuracy_is_not_as_good() -> None:
    right = np.arange(200) < 160
    light = big(np.arange(200) < 159, sure=0.81, facts=facts(bytes=1))
    decision = decide(big(right[::-1]), light, big(right), LIGHTER)
    assert not decision.promote


def test_a_class_that_collapses_blocks_a_better_model() -> None:
    place, labels = np.arange(10_000) // 10 % 10, np.arange(10_000) % 10
    champion = place < 7
    better = np.where(labels == 3, place < 4, place < 9)
    decision = decide(answers(place < 5), answers(better), answers(champion))
    assert better.mean() == pytest.approx(champion.mean() + 0.15)
    assert failed(decision)[-1] == ("pretrained", "no class much worse")
    sentence = check_of(decision, "pretrained", "no class much worse").sentence
    assert "30.0 percentage points on class 3" in sentence


def test_a_model_that_loses_half_of_a_class_is_always_blocked() -> None:
    rng, labels, blocked = np.random.default_rng(0), np.arange(1000) % 10, 0
    for _ in range(200):
        champion, better, lost = drawn(rng, 1000, 0.7, 0.85, 0.95, 0.425)
        collapsed = answers(np.where(labels == 3, lost, better))
        decision = decide(answers(champion), collapsed, answers(champion), FREE)
        blocked += ("pretrained", "no class much worse") in failed(decision) and not decision.promote
    assert blocked == 200


def test_a_class_that_is_a_little_worse_by_chance_does_not_block() -> None:
    better = np.arange(200) < 170
    better[[3, 13]] = False  # 2 of 20 images of class 3: 10 points, but p = 0.25
    assert decide(accurate(150), answers(better), accurate(150)).promote


def test_a_higher_loss_blocks_a_more_accurate_model() -> None:
    decision = decide(accurate(100), accurate(165, sure=0.3), accurate(150))
    assert failed(decision)[1:] == [("pretrained", "loss")]


def test_a_model_that_corruptions_harm_more_is_blocked() -> None:
    fragile = facts(corrupted={**ROBUST, "blur 1": np.arange(200) < 90})
    decision = decide(accurate(100), accurate(190, facts=fragile), accurate(150))
    assert failed(decision)[1:] == [("pretrained", "corrupted images")]
    assert "blur 1, -5.0" in decision.reason


def test_a_loss_on_corrupted_images_is_told_with_bound_and_limit() -> None:
    # 10 of 200 images are half as often right: 2.5 points, and 1.96 · 0.1092 / √200 = 1.51 of chance.
    fragile = facts(corrupted={**ROBUST, "blur 1": np.arange(200) < 90})
    check = check_of(
        decide(accurate(100), accurate(190, facts=fragile), accurate(150)), "pretrained", "corrupted images"
    )
    assert (check.number, check.limit) == (pytest.approx(0.025), 0.01)
    assert all(part in check.sentence for part in ("-2.50 percentage points on 200", "bound -0.99", "more than 1 "))


def test_a_model_as_robust_as_the_champion_differs_by_zero() -> None:
    check = check_of(decide(accurate(100), accurate(190), accurate(150)), "pretrained", "corrupted images")
    assert (check.passed, check.number) == (True, 0)
    assert "+0.00 percentage points on 200 corrupted images" in check.sentence
    assert "noise 1, +0.0" in check.sentence


def test_a_loss_on_corrupted_images_by_chance_does_not_block() -> None:
    # 8 images lost and 3 gained of 200, in one of two corruptions: 1.25 points, which is over the limit of 1.
    other = ROBUST["blur 1"].copy()
    other[:8], other[100:103] = False, True
    fragile = facts(corrupted={**ROBUST, "blur 1": other})
    assert decide(accurate(100), accurate(190, facts=fragile), accurate(150)).promote


def test_a_certain_loss_within_the_limit_does_not_block() -> None:
    many = {"noise 1": np.arange(10_000) < 9000, "blur 1": np.arange(10_000) < 9000}
    fragile = {**many, "blur 1": np.arange(10_000) < 8850}  # 0.75 points, 12 standard errors
    decision = decide(
        accurate(100, facts=facts(corrupted=many)),
        accurate(190, facts=facts(corrupted=fragile)),
        accurate(150, facts=facts(corrupted=many)),
    )
    assert decision.promote


def harmed(rng: np.random.Generator, rows: int, points: float) -> list[Facts]:
    """Return a champion's facts and a candidate's, worse by `points` on images under 15 corruptions.

    They differ as two trainings of the digits recipe do, by 14 points an image (standard deviation).
    """
    shared, made = rng.normal(0, 0.89, rows), []
    for rate in (0.9, 0.9 - points / 100):
        own, luck = rng.normal(0, 0.25, rows), rng.normal(0, 0.38, (15, rows))
        right = shared + own + luck < NormalDist().inv_cdf(rate)
        made.append(facts(corrupted={f"noise {number}": row for number, row in enumerate(right)}))
    return made


@pytest.mark.parametrize(
    ("rows", "points", "least", "most"), [(360, 0, 0, 0.07), (360, 4, 0.9, 1), (2000, 0, 0, 0.07), (2000, 2, 0.9, 1)]
)
def test_few_robust_models_and_most_fragile_ones_are_blocked(
    rows: int, points: float, least: float, most: float
) -> None:
    rng, blocked = np.random.default_rng(0), 0
    for _ in range(300):
        theirs, ours = harmed(rng, rows, points)
        decision = decide(accurate(100, facts=theirs), accurate(190, facts=ours), accurate(150, facts=theirs))
        blocked += ("pretrained", "corrupted images") in failed(decision)
    assert least <= blocked / 300 <= most


def test_the_test_images_of_the_comparison_are_recorded() -> None:
    check = check_of(decide(accurate(150), accurate(190), accurate(150)), "pretrained", "same test images")
    assert (check.passed, check.number, check.limit) == (True, 0.0, 0.0)
    assert "200 test images" in check.sentence
    assert "of data d1" in check.sentence


def test_the_champion_itself_is_no_new_model() -> None:
    check = check_of(decide(accurate(150), accurate(160), accurate(160, version="3")), "pretrained", "new model")
    assert (check.passed, check.number, check.limit) == (False, 0, 1)
    assert "is the champion (version 3) itself" in check.sentence


def test_a_champion_that_cannot_be_served_is_named() -> None:
    assert "version 7" in checks.vacancy("scratch", 0.9, unservable="7").sentence


RIGHT = np.arange(100) < 80
LIGHT = facts(bytes=300_000)


@pytest.mark.parametrize("champion", [None, big(np.arange(100) < 70, version="3")], ids=["no champion", "a champion"])
def test_a_lighter_candidate_takes_the_place_of_one_that_is_as_good(champion: Predictions | None) -> None:
    decision = decide(big(RIGHT), big(np.append(np.resize(RIGHT, 9_999), False), facts=LIGHT), champion, LIGHTER)
    assert (decision.promote, decision.winner) == (True, "pretrained")
    assert "pretrained is promoted in place of scratch: " in decision.reason
    assert "it saves 70% of size or time" in decision.reason


def test_a_lighter_candidate_that_loses_a_point_does_not() -> None:
    decision = decide(big(RIGHT), big(np.arange(100) < 79, facts=LIGHT), None, LIGHTER)
    assert decision.winner == "scratch"
    assert failed(decision) == [("pretrained", checks.TAKES_PLACE)]


def test_a_lighter_candidate_that_loses_a_class_does_not() -> None:
    wrong = np.arange(150) * 10  # of the first class
    other = np.resize(RIGHT, 10_000).copy()
    gained = np.setdiff1d(np.flatnonzero(~other), wrong)[: other[wrong].sum()]
    other[wrong], other[gained] = False, True
    decision = decide(big(RIGHT), big(other, facts=LIGHT), None, LIGHTER.model_copy(update={"loss_margin": 1.0}))
    assert decision.winner == "scratch"
    assert "percentage points on class 0 compared with scratch" in next(
        check.sentence for check in decision.checks if check.name == checks.TAKES_PLACE
    )


def test_the_check_of_classes_says_what_it_cannot_notice() -> None:
    right = np.ones(200, bool)
    few = check_of(
        decide(answers(right), answers(right, sure=0.9), answers(right)), "pretrained", "no class much worse"
    )
    assert "of 10 classes, one must lose at least 9 images to be noticed, and the smallest has 20)" in few.sentence
    small = np.ones(50, bool)
    blind = check_of(
        decide(answers(small), answers(small, sure=0.9), answers(small)), "pretrained", "no class much worse"
    )
    assert "the smallest has 5: 10 are too small to be noticed" in blind.sentence


def test_without_the_rule_a_lighter_candidate_takes_no_place() -> None:
    assert decide(big(RIGHT), big(RIGHT, facts=LIGHT), None).winner == "scratch"
