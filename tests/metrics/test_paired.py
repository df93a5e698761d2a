import numpy as np
import pytest

from mobilenet_pipeline.metrics import paired


def test_a_pair_counts_images_that_only_one_model_gets_right():
    candidate, champion = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert paired.pair(candidate, champion) == paired.Pair(2, 1, 5)
    assert paired.pair(candidate, champion).difference == pytest.approx(0.2)


def test_the_pairs_of_groups_are_those_of_their_images():
    candidate, champion = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    pairs = paired.pairs_by_group(candidate, champion, np.array([7, 3, 3, 7, 3]))
    assert pairs == {3: paired.Pair(2, 1, 3), 7: paired.Pair(0, 0, 2)}


def test_the_p_value_is_that_of_fair_coin_tosses():
    assert paired.p_better(paired.Pair(3, 1, 100)) == pytest.approx(5 / 16)
    assert paired.p_worse(paired.Pair(3, 1, 100)) == pytest.approx(15 / 16)


def test_models_that_never_differ_have_p_value_one():
    assert paired.p_better(paired.Pair(0, 0, 100)) == 1


def test_the_p_value_agrees_with_scipy_s_binomial_test():
    from scipy.stats import binomtest

    assert paired.p_better(paired.Pair(310, 240, 10_000)) == pytest.approx(
        binomtest(310, 550, alternative="greater").pvalue
    )


def test_the_lower_bound_has_its_nominal_level():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(2000):
        gained, lost, _ = rng.multinomial(2000, [0.03, 0.02, 0.95])
        missed += paired.lower_bound(paired.Pair(int(gained), int(lost), 2000), 0.05) > 0.01
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


def test_the_lower_bound_of_a_mean_has_its_nominal_level():
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1.0, -0.2, 0.0, 0.2, 1.0], (2000, 360), p=[0.01, 0.1, 0.77, 0.1, 0.02])
    missed = sum(paired.mean_lower_bound(differences, 0.05) > 0.01 for differences in drawn)
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


def test_one_difference_has_no_lower_bound():
    assert paired.mean_lower_bound(np.array([0.5]), 0.05) == -np.inf


def test_holm_multiplies_the_smallest_p_value_most():
    assert paired.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_an_adjusted_p_value_is_at_most_one():
    assert paired.holm([0.6, 0.9]) == [1.0, 1.0]
