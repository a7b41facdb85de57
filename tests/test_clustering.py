import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from landscape.maths.clustering import basins


def test_two_basins_are_found_in_the_order_of_their_first_networks():
    barriers = np.full((5, 5), 3.0)
    for basin in ([0, 2, 4], [1, 3]):
        barriers[np.ix_(basin, basin)] = 0.01
    np.fill_diagonal(barriers, 0)
    assert_array_equal(basins(barriers, 0.02), [0, 1, 0, 1, 0])
    assert_array_equal(basins(barriers, 3.0), [0] * 5)
    assert_array_equal(basins(barriers, 0.001), range(5))


def test_the_ends_of_a_chain_are_not_joined_by_its_middle():
    positions = np.array([0.0, 1.0, 2.1])
    barriers = abs(positions[:, None] - positions)
    assert_array_equal(basins(barriers, 1.5), [0, 0, 1])


@pytest.mark.parametrize("seed", range(5))
def test_within_a_basin_all_are_connected_and_no_two_basins_could_be_one(seed):
    rng = np.random.default_rng(seed)
    barriers = rng.uniform(size=(9, 9))
    barriers = np.triu(barriers, 1) + np.triu(barriers, 1).T
    labels = basins(barriers, 0.6)
    worst = {
        (a, b): barriers[np.ix_(labels == a, labels == b)].max()
        for a, b in itertools.combinations_with_replacement(range(labels.max() + 1), 2)
    }
    assert all((height <= 0.6) == (a == b) for (a, b), height in worst.items())
    order = rng.permutation(9)
    again = basins(barriers[np.ix_(order, order)], 0.6)
    same = labels[:, None] == labels
    assert_array_equal(again[:, None] == again, same[np.ix_(order, order)])


def test_a_barrier_at_the_threshold_connects_and_one_without_a_number_does_not():
    assert_array_equal(basins(np.array([[0, 0.02], [0.02, 0]]), 0.02), [0, 0])
    for height in (np.nan, np.inf):
        assert_array_equal(basins(np.array([[0, height], [height, 0]]), 1e6), [0, 1])
    assert_array_equal(basins(np.zeros((1, 1)), 0.02), [0])


def test_what_is_no_matrix_of_barriers():
    with pytest.raises(ValueError, match=r"symmetric \(n, n\) array, got shape \(2, 2\)"):
        basins(np.array([[0.0, 1], [2, 0]]), 0.02)
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        basins(np.zeros(3), 0.02)
