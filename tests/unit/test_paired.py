import numpy as np
import pytest

from mobilenet_pipeline import paired


def test_a_pair_counts_what_only_one_of_two_models_gets_right():
    candidate, champion = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert paired.pair(candidate, champion) == paired.Pair(2, 1, 5)
    assert paired.pair(candidate, champion).difference == pytest.approx(0.2)


def test_the_p_value_is_that_of_a_coin():
    assert paired.p_better(paired.Pair(3, 1, 100)) == pytest.approx(5 / 16)
    assert paired.p_worse(paired.Pair(3, 1, 100)) == pytest.approx(15 / 16)


def test_two_models_that_never_differ_are_no_better_than_each_other():
    assert paired.p_better(paired.Pair(0, 0, 100)) == 1


def test_the_p_value_agrees_with_scipy_s_binomial_test():
    from scipy.stats import binomtest

    assert paired.p_better(paired.Pair(310, 240, 10_000)) == pytest.approx(
        binomtest(310, 550, alternative="greater").pvalue
    )


def test_the_lower_bound_is_missed_in_about_the_share_of_draws_that_is_asked_for():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(2000):
        gained, lost, _ = rng.multinomial(2000, [0.03, 0.02, 0.95])
        missed += paired.lower_bound(paired.Pair(int(gained), int(lost), 2000), 0.05) > 0.01
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


def test_the_mean_s_bound_is_missed_in_about_the_share_of_draws_that_is_asked_for():
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1.0, -0.2, 0.0, 0.2, 1.0], (2000, 360), p=[0.01, 0.1, 0.77, 0.1, 0.02])
    missed = sum(paired.mean_lower_bound(differences, 0.05) > 0.01 for differences in drawn)
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


def test_of_one_difference_nothing_is_known():
    assert paired.mean_lower_bound(np.array([0.5]), 0.05) == -np.inf


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert paired.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_a_corrected_p_value_is_at_most_one():
    assert paired.holm([0.6, 0.9]) == [1.0, 1.0]
