import itertools
from collections import Counter
from math import factorial, prod

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.resampling import (
    bootstrap_interval,
    pair_interval,
    pair_mean,
    resampled_pair_means,
)


def design(num_groups, num_runs):
    """The runs and the group of each pair, where every group has as many runs."""
    pairs = np.array(list(itertools.combinations(range(num_runs), 2)))
    return np.tile(pairs, (num_groups, 1)), np.repeat(np.arange(num_groups), len(pairs))


def barriers(rng, num_groups, num_runs, *, of_group, of_run=0.5, of_pair=0.2):
    """Values of pairs that share runs and groups, with mean 1."""
    runs, groups = design(num_groups, num_runs)
    own = of_run * rng.normal(size=(num_groups, num_runs))
    shared = of_group * rng.normal(size=num_groups)
    ends = own[groups[:, None], runs].sum(1)
    return 1 + shared[groups] + ends + of_pair * rng.normal(size=len(groups)), runs, groups


def test_groups_count_the_same_however_many_pairs_they_have():
    values = np.array([[1.0, 2, 3, 10], [0, 0, 0, 4]])
    assert_array_equal(pair_mean(values, np.array(["a", "a", "a", "b"])), [6, 2])


def test_resamples_have_the_distribution_of_all_that_can_be_drawn():
    runs, groups = design(1, 4)
    values = np.array([0.0, 1, 3, 7, 12, 20])
    expected = Counter()
    for drawn in itertools.combinations_with_replacement(range(4), 4):
        counts = np.bincount(drawn, minlength=4)
        weights = counts[runs].prod(1)
        if weights.any():
            ways = factorial(4) // prod(factorial(count) for count in counts)
            expected[round(float(values @ weights / weights.sum()), 9)] += ways / (4**4 - 4)
    assert_allclose(sum(expected.values()), 1)
    num = 40000
    drawn = resampled_pair_means(values[None], runs, groups, num=num)[:, 0]
    found = Counter(drawn.round(9).tolist())
    assert set(found) == set(expected)
    for value, share in expected.items():
        assert abs(found[value] / num - share) < 5 * (share / num) ** 0.5


def test_groups_are_resampled_and_each_draws_its_own_runs():
    rng = np.random.default_rng(0)
    values, runs, groups = barriers(rng, 3, 3, of_group=1.0)
    within = [
        resampled_pair_means(values[None, groups == g], runs[groups == g], groups[groups == g])
        for g in range(3)
    ]
    drawn = resampled_pair_means(values[None], runs, groups, num=40000)[:, 0]
    means = [float(one.mean()) for one in within]
    variance = (np.var(means) + np.mean([one.var() for one in within])) / 3
    assert_allclose(drawn.mean(), np.mean(means), atol=0.02)
    assert_allclose(drawn.var(), variance, rtol=0.05)


def coverage(num_groups, num_runs, *, of_group, naive=False, num=200):
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(num):
        values, runs, groups = barriers(rng, num_groups, num_runs, of_group=of_group)
        if naive:
            low, high = bootstrap_interval(values[None], lambda m: m[:, 0], num=300, seed=seed)
        else:
            ends = pair_interval(values[None], runs, groups, num=300, seed=seed)
            low, high = (float(end[0]) for end in ends)
        hits += low <= 1 <= high
    return hits / num


def test_intervals_over_runs_cover_and_those_over_pairs_are_too_narrow():
    assert 0.86 <= coverage(1, 8, of_group=0) <= 0.98
    assert coverage(1, 8, of_group=0, naive=True) < 0.6


@pytest.mark.parametrize(
    ("num_groups", "num_runs", "of_group", "least", "most"),
    [
        (3, 3, 1.0, 0.85, 0.98),
        (3, 3, 0.0, 0.9, 1.0),
        (12, 2, 1.0, 0.9, 0.99),
        (1, 6, 0.0, 0.85, 0.97),
        (1, 4, 0.0, 0.7, 0.86),  # too few, as the docstring says
        (1, 3, 0.0, 0.4, 0.65),
    ],
)
def test_intervals_cover_the_truth_as_often_as_is_said(num_groups, num_runs, of_group, least, most):
    assert least <= coverage(num_groups, num_runs, of_group=of_group) <= most


def test_one_pair_shows_no_spread():
    runs, groups = design(1, 2)
    assert np.isnan(pair_interval(np.ones((2, 1)), runs, groups)).all()
    runs, groups = design(2, 2)
    low, high = pair_interval(np.array([[1.0, 2.0]]), runs, groups)
    assert_array_equal([low, high], [[1], [2]])


def test_values_without_a_number_have_no_interval_and_leave_the_others_alone():
    values, runs, groups = barriers(np.random.default_rng(1), 2, 3, of_group=1)
    broken = np.where(np.arange(6) == 2, np.inf, values)
    low, high = pair_interval(np.stack([broken, values]), runs, groups)
    assert np.isnan([low[0], high[0]]).all()
    assert_array_equal([low[1:], high[1:]], pair_interval(values[None], runs, groups))


def test_names_serve_as_well_as_numbers_and_the_seed_decides():
    values, runs, groups = barriers(np.random.default_rng(2), 3, 3, of_group=1)
    named = np.array(["x", "y", "z"])
    found = pair_interval(values[None], runs, groups)
    assert_array_equal(found, pair_interval(values[None], named[runs], named[groups]))
    assert found != pair_interval(values[None], runs, groups, seed=1)


def test_more_confidence_is_wider_and_percent_are_no_level():
    values, runs, groups = barriers(np.random.default_rng(2), 4, 4, of_group=1)
    low, high = pair_interval(values[None], runs, groups, level=0.5)
    lower, higher = pair_interval(values[None], runs, groups, level=0.9)
    assert lower < low < pair_mean(values, groups) < high < higher
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        pair_interval(values[None], runs, groups, level=95)
