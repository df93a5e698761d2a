"""The error budget of a test set, spent over all comparisons on it. Pure."""

YEAR = 730
"""The comparisons in a year of nights with two candidates each; so many have the same part of the budget."""

FIRST, YEARLY, LATER = 0.08, 0.82, 0.10
"""Shares of the budget: for the first few comparisons, for the first `YEAR`, and for all later ones."""


def level(budget: float, number: int) -> float:
    """Return the significance level of comparison `number`, counted from 1, on the same test images.

    The levels of any number of comparisons sum to at most `budget`. So, by Bonferroni's inequality, `budget` bounds the
    chance that any of them promotes a model that is no better. This is alpha-spending for the familywise error rate
    (Tian and Ramdas 2021, Statistical Methods in Medical Research 30:976). The sequence has a first part for small test
    sets, on which only large gains are significant; a constant part, so that the last night of a year has the power of
    the second; and a tail without an end. Raises ValueError if `number` is less than 1.
    """
    if number < 1:
        raise ValueError(f"comparisons are numbered from 1, not {number}")
    regular = YEARLY / YEAR if number <= YEAR else LATER * YEAR / (number * (number - 1))
    return budget * (FIRST / (number * (number + 1)) + regular)


def left(number: int) -> float:
    """Return the share of the budget that is left after `number` comparisons."""
    regular = YEARLY * (1 - number / YEAR) + LATER if number <= YEAR else LATER * YEAR / number
    return FIRST / (number + 1) + regular
