from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.neurons import correlation_matrix, match_neurons


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_correlations_are_those_of_numpy_whatever_offset_and_scale():
    x, y = normal(40, 5), normal(40, 3, seed=1)
    expected = np.corrcoef(x, y, rowvar=False)[:5, 5:]
    assert_allclose(correlation_matrix(x, y), expected, rtol=1e-12)
    assert_allclose(correlation_matrix(1e-5 * x + 3, torch.tensor(1e-30 * y)), expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["one-to-one", "best"])
def test_a_permuted_copy_comes_back(method):
    x = normal(60, 12)
    order = np.random.default_rng(1).permutation(12)
    y = np.empty_like(x)
    y[:, order] = x * np.linspace(0.1, 9, 12) + 5  # neuron i of x is neuron order[i] of y
    found = match_neurons(x, y, method=method)
    assert_array_equal(found.assignment, order)
    assert_allclose(found.correlations, 1, rtol=1e-13)
    assert_allclose(float(found), 1, rtol=1e-13)
    assert found.num_matched == 12


def test_one_to_one_is_the_best_of_all_permutations():
    for seed in range(5):
        x, y = normal(9, 5, seed=seed), normal(9, 5, seed=seed + 50)
        matrix = np.corrcoef(x, y, rowvar=False)[:5, 5:]
        for signed, gain in ((True, matrix), (False, abs(matrix))):
            best = max(gain[range(5), list(p)].sum() for p in permutations(range(5)))
            found = match_neurons(x, y, signed=signed)
            assert_allclose(5 * float(found), best, rtol=1e-12)
            assert_allclose(found.correlations, matrix[range(5), found.assignment], rtol=1e-12)


def test_the_best_partner_may_be_shared_and_its_mean_is_never_below_one_to_one():
    x, y = normal(50, 4), normal(50, 6, seed=1)
    x[:, 1] = x[:, 0]
    y[:, 5] = x[:, 0] + 0.1 * y[:, 5]
    best = match_neurons(x, y, method="best")
    matrix = np.corrcoef(x, y, rowvar=False)[:4, 4:]
    assert_array_equal(best.assignment, matrix.argmax(1))
    assert best.assignment[0] == best.assignment[1] == 5
    one = match_neurons(x, y)
    assert len(set(one.assignment.tolist())) == 4
    assert float(best) >= float(one)


def test_a_neuron_turned_upside_down_is_matched_by_magnitude_alone():
    x = normal(200, 3)
    y = np.stack([-x[:, 2], x[:, 0], x[:, 1]], 1)
    unsigned = match_neurons(x, y, signed=False)
    assert_array_equal(unsigned.assignment, [1, 2, 0])
    assert_allclose(unsigned.correlations, [1, 1, -1], rtol=1e-13)
    assert_allclose(float(unsigned), 1, rtol=1e-13)
    assert float(match_neurons(x, y)) < 0.7


@pytest.mark.parametrize("method", ["one-to-one", "best"])
def test_dead_neurons_have_no_partner_and_change_no_others(method):
    x, y = normal(30, 4), normal(30, 5, seed=1)
    alone = match_neurons(x, y, method=method)
    dead_x = np.insert(x, 1, 0.1, axis=1)
    dead_y = np.insert(y, 0, 1e6, axis=1)
    found = match_neurons(dead_x, dead_y, method=method)
    assert found.assignment[1] == -1
    assert np.isnan(found.correlations[1])
    assert_array_equal(np.delete(found.assignment, 1), alone.assignment + 1)
    assert_allclose(float(found), float(alone), rtol=1e-13)


def test_the_wider_side_keeps_neurons_without_a_partner():
    x, y = normal(30, 6), normal(30, 2, seed=1)
    found = match_neurons(x, y)
    back = match_neurons(y, x)
    assert found.num_matched == back.num_matched == 2
    assert_array_equal(found.assignment[back.assignment], range(2))
    assert np.isnan(found.correlations).sum() == 4
    assert_allclose(float(found), float(back), rtol=1e-13)


def test_nothing_to_match_is_nan_with_a_reason():
    found = match_neurons(np.ones((5, 2)), normal(5, 3))
    assert np.isnan(float(found))
    assert found.reason == "no pair of neurons varies over the examples"
    assert_array_equal(found.assignment, [-1, -1])


def test_what_cannot_be_matched():
    with pytest.raises(ValueError, match="'one-to-one' or 'best', got 'greedy'"):
        match_neurons(normal(5, 2), normal(5, 2), method="greedy")
    with pytest.raises(ValueError, match="same examples in the same order, got 5 and 6 rows"):
        match_neurons(normal(5, 2), normal(6, 2))
    with pytest.raises(ValueError, match="real correlations, got complex"):
        match_neurons(normal(5, 2) * 1j, normal(5, 2))
    with pytest.raises(ValueError, match="y has values that are not finite in 1 of 5"):
        match_neurons(normal(5, 2), np.array([[0.0], [1], [np.inf], [2], [3]]))
